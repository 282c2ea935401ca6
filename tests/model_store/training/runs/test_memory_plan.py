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
    assert 1_400e6 < training_bytes(net, full, CPU) < 1_550e6  # 1,323 MB and the decoding processes were measured
    assert training_bytes(net, Recipe(batch_size=128), CPU) > training_bytes(net, full, CPU) + 500e6
    assert training_bytes(small.architecture(10), small, CPU) < 500e6


def test_images_get_the_memory_that_training_leaves() -> None:
    recipe = Recipe(batch_size=100)
    net = recipe.architecture(10)
    needed = training_bytes(net, recipe, CPU)
    assert picture_budget(2000, net, recipe, CPU, None) == 2000
    assert picture_budget(2000, net, recipe, CPU, needed + 9000) == 2000
    assert picture_budget(2000, net, recipe, CPU, needed + 600) == 600


@pytest.mark.parametrize(("left", "size"), [(1_200_000_000, 16), (1_000_000_000, 4), (790_000_000, None)])
def test_a_smaller_batch_is_proposed_only_if_it_fits(left: int, size: int | None) -> None:
    recipe = Recipe(batch_size=32)
    net = recipe.architecture(10)
    with pytest.raises(TrainingMemoryError) as caught:
        picture_budget(2000, net, recipe, CPU, left)
    assert caught.value.batch_size == size
    if size is None:
        assert str(caught.value).endswith("are available. Raise the memory limit.")
    else:
        assert f"Raise the memory limit or use smaller batches (--set batch_size={size})." in str(caught.value)
        assert picture_budget(2000, net, Recipe(batch_size=size), CPU, left) == 2000
        with pytest.raises(TrainingMemoryError):
            picture_budget(2000, net, Recipe(batch_size=2 * size), CPU, left)


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
