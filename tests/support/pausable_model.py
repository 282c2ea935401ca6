"""A real model that a test can pause, and images that can be told apart by their first value."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import RunnerError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner

Pixels = NDArray[np.uint8]


class _Pausable:
    """Something whose runs a test can pause."""

    def __init__(self) -> None:
        self._resumed = threading.Event()
        self._resumed.set()

    def pause(self) -> None:
        """Make runs wait until `resume`."""
        self._resumed.clear()

    def resume(self) -> None:
        """Let all runs continue."""
        self._resumed.set()

    def _wait(self) -> None:
        assert self._resumed.wait(20), "paused for too long"


class PausableModel(_Pausable):
    """Runs a real model unless it is paused, records the rows of each run, and fails if `fails` returns True."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner
        self.sizes: list[int] = []
        self.marks: list[
            list[int]
        ] = []  # the first value of each row, by run: it identifies the images that ran together
        self.all_cores: list[bool] = []  # by run
        self.threads: list[threading.Thread] = []  # by run
        self.started = threading.Semaphore(0)  # released at the start of each run
        self.fails: Callable[[Pixels], bool] = lambda _: False

    def __call__(self, pixels: Pixels, *, all_cores: bool = True) -> Outputs:
        self.all_cores.append(all_cores)
        self.threads.append(threading.current_thread())
        self.started.release()
        self._wait()
        if self.fails(pixels):
            raise RunnerError("tiny:1", "injected")
        self.sizes.append(len(pixels))
        self.marks.append([int(row[0, 0, 0]) for row in pixels])
        return self._runner.run(pixels, all_cores=all_cores)


class PausableRunner(_Pausable, Runner):
    """A real runner whose runs a test can pause, or make fail by setting `broken`."""

    def __init__(self, artifact: Artifact, options: RunnerOptions) -> None:
        _Pausable.__init__(self)
        self.broken = False
        Runner.__init__(self, artifact, options)

    def run(self, pixels: Pixels, *, all_cores: bool = True) -> Outputs:
        self._wait()
        if self.broken:
            raise RunnerError(self.artifact.id, "injected")
        return super().run(pixels, all_cores=all_cores)


def image(value: int) -> Pixels:
    """Return a prepared image, uint8 [256,256,3], whose first value is `value`."""
    pixels = np.random.default_rng(value).integers(0, 256, (256, 256, 3), np.uint8)
    pixels[:40, :40] = value
    return pixels
