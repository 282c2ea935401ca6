"""A real model behind a gate that the test opens, and pictures that are told apart by their first value."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_store.errors import RunnerError
from model_store.runtime.runner import Outputs, Runner

Pixels = NDArray[np.uint8]


class Gate:
    """The model behind a gate: notes the rows of each run, waits while closed, fails where `fails` says so."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.sizes: list[int] = []
        self.marks: list[list[int]] = []  # each row's first value: which pictures ran together
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.fails: Callable[[Pixels], bool] = lambda _: False

    def __call__(self, pixels: Pixels) -> Outputs:
        self.entered.release()
        assert self.open.wait(10)
        if self.fails(pixels):
            raise RunnerError("tiny:1", "injected")
        self.sizes.append(len(pixels))
        self.marks.append([int(row[0, 0, 0]) for row in pixels])
        return self._runner.run(pixels)


def picture(value: int) -> Pixels:
    pixels = np.random.default_rng(value).integers(0, 256, (256, 256, 3), np.uint8)
    pixels[:40, :40] = value
    return pixels
