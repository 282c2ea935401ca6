"""Admission: how many images the queue accepts, and when to retry; and the data types of the queue.

Guarantees:
- Admission is counted in images and atomic: a request gets a slot for every image, or none.
- Slots are held from before decoding until the prediction, so the queue size bounds all work in the server.
- At the measured rate, every admitted image is answered within the deadline.

Out of scope: locking. Every method must be called with the batcher's lock held.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.novelty.reference import Novelty
from model_store.runtime.explainer import Explainer, Target
from service.errors import DrainingError, QueueFullError, RunnerDeadError

_MAX_RETRY_AFTER_S = 60
_DEADLINE_SHARE = 0.8  # available for queueing: the rate varies, and decoding and sending the response take time too
_SMOOTHING = 0.8  # weight of earlier batches in the measured rate


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_batch` in rows, `max_delay_s` and `deadline_s` in seconds, `queue_size` in images."""

    max_batch: int
    max_delay_s: float
    queue_size: int
    deadline_s: float = float("inf")


class HeatMap(NamedTuple):
    """The explanation of one image: the index of the explained class, and float32 [height, width], not scaled."""

    class_index: int
    values: NDArray[np.float32]


class Prediction(NamedTuple):
    """The model's output for one image: float32 [K] and float32 [4096]. Times are in seconds.

    novelty: None if the version has no reference. heat: if the image was explained.
    """

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]
    queue_seconds: float
    run_seconds: float
    novelty: Novelty | None = None
    heat: HeatMap | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExplainTask:
    """What to explain about an image, and the graph that does it. An explained image has one view."""

    explainer: Explainer
    target: Target


@dataclass(slots=True)
class QueuedImage:
    """A prepared image, uint8 [256,256,3], with 1 or 10 views. `queued_at` is a monotonic time in seconds."""

    pixels: NDArray[np.uint8]
    views: int
    explain: ExplainTask | None = None
    queued_at: float = field(default_factory=time.monotonic)
    future: Future[Prediction] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class Slots:
    """The queue slots of one request. `pending` images are not queued yet; `queued` images wait for the model."""

    images: int
    pending: int
    queued: deque[QueuedImage] = field(default_factory=deque)
    released: bool = False


class Admission:
    """Counts admitted images and measures how fast the model answers them."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self.admitted = 0
        self.recent = 0  # the most that were admitted at a time since the last batch was taken
        self.pending = 0  # admitted, but still being received or decoded
        self.closing = False
        self.death: RunnerDeadError | None = None
        self.seconds_per_image = 0.0  # smoothed; 0 until the first batch is done

    def check_open(self) -> None:
        """Raise RunnerDeadError or DrainingError if no batch will run any more."""
        if self.death is not None:
            raise self.death
        if self.closing:
            raise DrainingError

    def admit(self, images: int) -> None:
        """Take `images` slots. Raises QueueFullError, DrainingError or RunnerDeadError."""
        self.check_open()
        if (refusal := self.refusal(images)) is not None:
            raise refusal
        self.admitted += images
        self.recent = max(self.recent, self.admitted)
        self.pending += images

    def refusal(self, images: int) -> QueueFullError | None:
        """Return the error for a request of `images` images, or None if the queue has enough free slots."""
        limit = self._limits.queue_size
        if self.seconds_per_image and self.admitted:  # an idle server accepts any request
            limit = int(min(limit, self._limits.deadline_s * _DEADLINE_SHARE / self.seconds_per_image))
        if self.admitted + images <= limit:
            return None
        # By then about half of the admitted images are answered.
        retry_after = math.ceil(self.admitted / 2 * self.seconds_per_image)
        return QueueFullError("images", limit, min(max(retry_after, 1), _MAX_RETRY_AFTER_S))

    def mark_taken(self) -> None:
        """Count `recent` from now on: a batch was taken."""
        self.recent = self.admitted

    def mark_queued(self, slots: Slots) -> None:
        """Count one image of a request as queued."""
        queued = min(slots.pending, 1)
        slots.pending -= queued
        self.pending -= queued

    def release(self, slots: Slots) -> None:
        """Free all slots of a request."""
        self.admitted -= slots.images
        self.pending -= slots.pending
        slots.pending, slots.released = 0, True

    def record_rate(self, seconds_per_image: float) -> None:
        """Add the rate of a finished batch to the smoothed rate."""
        if self.seconds_per_image:
            seconds_per_image = _SMOOTHING * self.seconds_per_image + (1 - _SMOOTHING) * seconds_per_image
        self.seconds_per_image = seconds_per_image
