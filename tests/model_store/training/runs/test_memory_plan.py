"""The memory of a run: the estimate, the budget for images, and a process with a limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_store.errors import TrainingError, TrainingMemoryError
from model_store.training.device import out_of_memory_in_words
from model_store.training.recipe import Recipe
from model_store.training.runs.memory_plan import checkpoint_bytes, picture_budget, training_bytes
from tests.support.training.class_folders import write_class_folders

CPU = torch.device("cpu")


def test_the_estimate_grows_with_the_net_and_the_batch() -> None:
    full, small = Recipe(batch_size=32), Recipe(batch_size=32, width=0.25)
    net = full.architecture(1000)
    assert checkpoint_bytes(net) == 4 * 4 * 60_965_224
    assert 1_200e6 < training_bytes(net, full, CPU) < 1_500e6
    assert training_bytes(net, Recipe(batch_size=128), CPU) > training_bytes(net, full, CPU) + 500e6
    assert training_bytes(small.architecture(10), small, CPU) < 500e6


def test_images_get_the_memory_that_training_leaves() -> None:
    assert picture_budget(2000, 500, None) == 2000
    assert picture_budget(2000, 500, 9000) == 2000
    assert picture_budget(2000, 500, 1100) == 600
    with pytest.raises(TrainingMemoryError, match=r"needs about 500 MB of memory, and 400 MB are available.*--set"):
        picture_budget(2000, 500_000_000, 400_000_000)


def test_memory_that_cannot_be_allocated_is_an_error_in_words() -> None:
    with (
        pytest.raises(TrainingError, match=r"not enough memory for training .*--set batch_size"),
        out_of_memory_in_words(),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(TrainingError, match="not enough memory"), out_of_memory_in_words():
        bytearray(1 << 60)
    with pytest.raises(RuntimeError, match="other"), out_of_memory_in_words():
        raise RuntimeError("other")


def test_a_limited_process_rejects_a_net_that_does_not_fit(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    module = f"{sys.executable} -m model_store.training.train --home {tmp_path} --name a --data {data}"
    command = f"ulimit -v 1800000; exec {module} --set batch_size=512"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Training needs about" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
