"""What a run of the model takes and gives, image by image: `QueuedImage`s in, their views as rows, `Row`s out.

Promises: rows are those of each image alone: views are averaged image by image. Does not: queue, choose what runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.image import views
from model_store.runtime.runner import Outputs, average_views


class Run(Protocol):
    """The model: `Runner.run` or `Runner.run_beside`."""

    def __call__(self, pixels: NDArray[np.uint8], /) -> Outputs:
        """Answer uint8 [n,224,224,3], one row for each."""
        ...


class Row(NamedTuple):
    """The model's answer for one image: float32 [K] and [4096]; seconds it waited, and seconds of its run."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]
    waited: float
    ran: float


@dataclass(slots=True)
class QueuedImage:
    """One prepared image, uint8 [256,256,3], with 1 or 10 views; `since` (monotonic) it waits for its row."""

    pixels: NDArray[np.uint8]
    views: int
    since: float = field(default_factory=time.monotonic)
    future: Future[Row] = field(default_factory=Future)


def run_items(run: Run, items: Sequence[QueuedImage]) -> list[Row]:
    """Return the rows of these images, from one run. Raises what `run` raises."""
    started = time.monotonic()
    outputs = run(np.concatenate([views(item.pixels, item.views) for item in items]))
    ran = time.monotonic() - started
    rows = []
    first = 0
    for item in items:
        own = slice(first, first + item.views)
        first += item.views
        probabilities = average_views(outputs.probabilities[own], item.views)
        fc7 = average_views(outputs.fc7[own], item.views)
        rows.append(Row(probabilities[0], fc7[0], started - item.since, ran))
    return rows
