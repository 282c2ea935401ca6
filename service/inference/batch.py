"""Data types of the batch queue, and the run of one batch.

Guarantees: the prediction of an image depends on that image only. Views are averaged per image.
Out of scope: queueing, and choosing which images run together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.image import views
from model_store.runtime.runner import Outputs, average_views

# Runs the model (`Runner.run` or `Runner.run_in_stream`): returns one output row for each row, uint8 [n,224,224,3].
InferFn = Callable[[NDArray[np.uint8]], Outputs]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_batch` in rows, `max_delay_s` and `deadline_s` in seconds, `queue_size` in images."""

    max_batch: int
    max_delay_s: float
    queue_size: int
    deadline_s: float = float("inf")


class Prediction(NamedTuple):
    """The model's output for one image: float32 [K] and float32 [4096]. Times are in seconds."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]
    queue_seconds: float
    run_seconds: float


@dataclass(slots=True)
class QueuedImage:
    """A prepared image, uint8 [256,256,3], with 1 or 10 views. `queued_at` is a monotonic time in seconds."""

    pixels: NDArray[np.uint8]
    views: int
    queued_at: float = field(default_factory=time.monotonic)
    future: Future[Prediction] = field(default_factory=Future)


def run_batch(infer: InferFn, images: Sequence[QueuedImage]) -> list[Prediction]:
    """Run the model once on all views of `images` and return one prediction per image. Raises what `infer` raises."""
    started = time.monotonic()
    outputs = infer(np.concatenate([views(image.pixels, image.views) for image in images]))
    run_seconds = time.monotonic() - started
    predictions = []
    first = 0
    for image in images:
        rows = slice(first, first + image.views)
        first += image.views
        probabilities = average_views(outputs.probabilities[rows], image.views)
        fc7 = average_views(outputs.fc7[rows], image.views)
        predictions.append(Prediction(probabilities[0], fc7[0], started - image.queued_at, run_seconds))
    return predictions
