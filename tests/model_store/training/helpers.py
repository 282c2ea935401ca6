"""Helpers for tests that train: a reporter that records, short runs, and comparison of their weights."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model_store.training.loop import train
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs.run import MODEL_FILE, WEIGHTS_PREFIX, read_tensors
from model_store.training.trainer import Result
from tests.support.training.class_folders import TRIAL_RECIPE

RECIPE = replace(TRIAL_RECIPE, epochs=3, batch_size=5)  # 18 images: 4 steps per epoch, the last one with 3 images


class RecordingReporter(Reporter):
    """Records all reports, and sets `stop` after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.stop = threading.Event()
        self._steps = 0
        self._stop_after = stop_after

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, *_: float) -> None:
        self._steps += 1
        if self._steps == self._stop_after:
            self.stop.set()


def train_trial(
    data: Path, home: Path, recipe: Recipe = RECIPE, reporter: RecordingReporter | None = None, **options: Any
) -> Result:
    """Train a run called "trial". The reporter can stop it."""
    reporter = reporter or RecordingReporter()
    return train(data, recipe, home=home, name="trial", reporter=reporter, stop=reporter.stop, **options)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / MODEL_FILE, WEIGHTS_PREFIX)


def same_weights(first: Path, second: Path) -> bool:
    one, other = final_weights(first), final_weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
