"""Training on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.training.distributed.group import Group
from model_store.training.loop import Resources, train
from model_store.training.recipe import Recipe
from model_store.training.runs.run import load_run, read_metrics
from tests.support.training.class_folders import TRIAL_RECIPE, write_class_folders

pytestmark = pytest.mark.gpu


def train_once(data: Path, home: Path, recipe: Recipe, device: str) -> dict[str, Any]:
    """Train, and return the metrics of the last epoch."""
    result = train(data, recipe, home=home, name="gpu", resources=Resources(group=Group(device=torch.device(device))))
    assert result.finished
    return [line for line in read_metrics(load_run(result.run).path) if line["kind"] == "epoch"][-1]


def test_same_losses(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Training: a small net gets the same loss as on the CPU"""
    data = write_class_folders(tmp_path / "data")
    losses = [train_once(data, tmp_path / name, TRIAL_RECIPE, name)["train_loss"] for name in ("cuda", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    figure(f"{losses[0]:.4f}, CPU {losses[1]:.4f}")


def test_one_epoch(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Training: one epoch of the paper's net"""
    data = write_class_folders(tmp_path / "data", train=400, val=20)
    recipe = replace(TRIAL_RECIPE, width=1, epochs=1, batch_size=128, learning_rate=0.005, precision="auto")
    metrics = train_once(data, tmp_path / "home", recipe, "cuda")
    assert np.isfinite(metrics["train_loss"])
    figure(f"{metrics['images_per_second']:,.0f} images/s, loss {metrics['train_loss']:.3f}")
