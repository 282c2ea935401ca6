"""The batch loop: collects images of many requests into batches, runs them and delivers the predictions.

Guarantees:
- A batch takes the images that are queued, up to `max_batch` rows and up to an equal share of all admitted images. It
  waits for images that are being decoded until the oldest image has waited `max_delay_s`, since the last run if runs
  and decoding share cores. If every core is decoding, it may wait as long as the last run took.
- Requests take turns, image by image: a request with 32 images does not delay one with a single image.
- An image whose future is cancelled or whose slots are released is not run.
- If a batch fails, its images are run one by one, so that one image cannot fail the others. If all of them and a blank
  image fail too, the model is dead: all waiting requests fail immediately, and `on_death` is called.
- Each prediction is the one that the image would get alone, except for rounding.

Out of scope: decoding (decoding threads reserve a core with `Ticket.decoding`) and deadlines (the caller's timeout
cancels the futures). Admission and core scheduling have modules of their own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model_store.image import CROP, views
from model_store.novelty.reference import Novelty
from model_store.runtime.runner import Outputs, average_views
from service.errors import QueueFullError, RunnerDeadError
from service.inference.admission import Admission, BatchLimits, Prediction, QueuedImage, Slots
from service.inference.core_scheduler import CoreScheduler


class Ticket(Slots):
    """The queue slots of one request. As a context manager it releases them on exit."""

    __slots__ = ("_batcher",)

    def __init__(self, batcher: Batcher, images: int) -> None:
        super().__init__(images, pending=images)
        self._batcher = batcher

    def decoding(self) -> AbstractContextManager[None]:
        """Wait for a core and hold it to decode one image. Raises CancelledError if the slots were released."""
        return self._batcher._scheduler.core_for(self)

    def set_aside(self) -> None:
        """Do not let batches wait for one image of this request: decoding it takes long."""
        self._batcher._set_aside(self)

    def submit(self, pixels: NDArray[np.uint8], views: int = 1) -> Future[Prediction]:
        """Queue one prepared image, uint8 [256,256,3], with 1 or 10 views.

        The future is cancelled if the slots were released. Raises RunnerDeadError or DrainingError if no batch will
        run any more.
        """
        return self._batcher._enqueue(self, QueuedImage(pixels, views))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batcher._release(self)


class Batcher:
    """A queue of images, and a thread that runs batches of them."""

    def __init__(
        self,
        infer: InferFn,
        limits: BatchLimits,
        *,
        measure: MeasureFn | None = None,
        cores: int | None = None,
        on_run: Callable[[int, float], None] = lambda _rows, _seconds: None,
        on_death: Callable[[RunnerDeadError], None] = lambda _error: None,
    ) -> None:
        """Start the thread.

        infer: runs a batch. measure: returns the novelty of its images; None if the version has no reference.
        cores: shared by runs and decoding; None if the model runs on a device of its own (CUDA),
        where a batch starts as soon as possible. `on_run(rows, seconds)` is called after each run and
        `on_death(error)` once, in the thread of the run.
        """
        self._infer = infer
        self._measure = measure
        self._limits = limits
        self._on_run = on_run
        self._on_death = on_death
        self._lock = threading.Lock()
        self._admission = Admission(limits)
        self._scheduler = CoreScheduler(self._lock, cores=cores, batch_is_ready=self._batch_is_ready)
        self._ready: deque[Ticket] = deque()  # requests with queued images; the first one is served next
        self._last_run_seconds = 0.0
        self._last_run_ended = 0.0  # monotonic
        self._thread = threading.Thread(target=self._serve, name="fc7-model", daemon=True)
        self._thread.start()

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered."""
        return self._admission.admitted

    @property
    def death(self) -> RunnerDeadError | None:
        """Why the model is dead, or None if it works."""
        return self._admission.death

    def admit(self, images: int) -> Ticket:
        """Take a slot for each of `images` images, or none. Raises QueueFullError, DrainingError, RunnerDeadError."""
        with self._lock:
            self._admission.admit(images)
        return Ticket(self, images)

    def refusal(self) -> QueueFullError | None:
        """Return the error that a request of one image would get now, or None if it would be admitted."""
        with self._lock:
            return self._admission.refusal(1)

    def close(self) -> None:
        """Admit no more images, answer the queued ones and end the thread. Safe to call twice."""
        with self._lock:
            self._admission.closing = True
            self._scheduler.run_may_start.notify_all()
        self._thread.join()

    def _enqueue(self, ticket: Ticket, image: QueuedImage) -> Future[Prediction]:
        with self._lock:
            self._admission.check_open()
            if ticket.released:
                image.future.cancel()
                return image.future
            if not ticket.queued:
                self._ready.append(ticket)
            ticket.queued.append(image)
            self._admission.mark_queued(ticket)
            self._scheduler.run_may_start.notify()
        return image.future

    def _set_aside(self, ticket: Ticket) -> None:
        with self._lock:
            self._admission.mark_queued(ticket)
            self._scheduler.run_may_start.notify()

    def _release(self, ticket: Ticket) -> None:
        with self._lock:
            self._admission.release(ticket)
            abandoned = ticket.queued
            if abandoned:
                self._ready.remove(ticket)
                ticket.queued = deque()
            self._scheduler.run_may_start.notify()
            self._scheduler.core_may_be_free.notify_all()
        for image in abandoned:
            image.future.cancel()

    def _serve(self) -> None:
        alive = True
        while alive and (images := self._next_batch()) is not None:
            try:
                alive = not images or self._answer(images)
            finally:
                with self._lock:
                    self._last_run_ended = time.monotonic()
                    self._scheduler.end_run()

    def _next_batch(self) -> list[QueuedImage] | None:
        """Wait for the next batch and take it; return None when there will be no more."""
        scheduler = self._scheduler
        with self._lock:
            while not (self._batch_is_ready() and scheduler.has_free_core()):
                if self._admission.closing and not self._ready:
                    return None
                scheduler.run_may_start.wait(self._wait_budget() if scheduler.has_free_core() else None)
            return self._take()

    def _batch_is_ready(self) -> bool:
        return bool(self._ready) and not self._scheduler.running and self._wait_budget() == 0

    def _wait_budget(self) -> float | None:
        """Return for how many seconds a batch should still wait for more images; None if no image is queued."""
        images = [image for ticket in self._ready for image in ticket.queued]
        if not images:
            return None
        pending, scheduler = self._admission.pending, self._scheduler
        oldest = min(image.queued_at for image in images)
        full = sum(image.views for image in images) >= self._limits.max_batch or len(images) >= self._fair_share()
        device_was_idle = scheduler.cores is None and oldest > self._last_run_ended
        if full or device_was_idle or self._admission.closing or not pending:
            return 0
        longest = self._limits.max_delay_s
        if not scheduler.has_free_core() or pending > scheduler.decoding:  # no core is idle during the wait
            longest = max(longest, self._last_run_seconds)
        # Images are not decoded during a run, so those that an earlier batch left over have not waited for them yet.
        started = oldest if scheduler.cores is None else max(oldest, self._last_run_ended)
        return max(0.0, started + longest - time.monotonic())

    def _fair_share(self) -> int:
        """Return how many images a batch takes at most: all batches get equal parts, in as few rounds as possible.

        Unequal batches would stay unequal, because clients that are answered together send their next requests
        together. Requests in the longer batches would always wait longer.
        """
        admitted = self._admission.admitted
        rounds = -(-admitted // self._limits.max_batch) or 1
        return -(-admitted // rounds)

    def _take(self) -> list[QueuedImage]:
        """Take images in turn, one of each request, while they fit in the batch; at least one."""
        share = self._fair_share()
        images: list[QueuedImage] = []
        rows = 0
        while self._ready:
            ticket = self._ready[0]
            if images and (len(images) >= share or rows + ticket.queued[0].views > self._limits.max_batch):
                break
            self._ready.popleft()
            image = ticket.queued.popleft()
            if ticket.queued:
                self._ready.append(ticket)
            if image.future.set_running_or_notify_cancel():
                images.append(image)
                rows += image.views
        self._scheduler.start_run()
        return images

    def _answer(self, images: list[QueuedImage]) -> bool:
        """Run a batch and set its futures; return False if the model is dead."""
        try:
            predictions = self._run(images)
        except Exception:
            return self._answer_one_by_one(images)
        with self._lock:
            self._last_run_seconds = predictions[0].run_seconds
            # Decoding between two batches counts too, so the rate is measured from the end of one to the next.
            started = max(self._last_run_ended, min(image.queued_at for image in images))
            self._admission.record_rate((time.monotonic() - started) / len(images))
        for image, prediction in zip(images, predictions, strict=True):
            image.future.set_result(prediction)
        return True

    def _answer_one_by_one(self, images: list[QueuedImage]) -> bool:
        alive = False
        failed: list[tuple[QueuedImage, Exception]] = []
        for image in images:
            try:
                [prediction] = self._run([image])
            except Exception as error:
                failed.append((image, error))
            else:
                image.future.set_result(prediction)
                alive = True
        if not alive:
            try:
                self._infer(np.zeros((1, CROP, CROP, 3), np.uint8))
            except Exception as error:
                self._die(error, images)
                return False
        for image, failure in failed:
            image.future.set_exception(failure)
        return True

    def _run(self, images: list[QueuedImage]) -> list[Prediction]:
        predictions = run_batch(self._infer, images, self._measure)
        self._on_run(sum(image.views for image in images), predictions[0].run_seconds)
        return predictions

    def _die(self, cause: Exception, images: list[QueuedImage]) -> None:
        """Fail `images` and all queued images with RunnerDeadError."""
        death = RunnerDeadError(str(cause) or type(cause).__name__)
        death.__cause__ = cause
        with self._lock:
            self._admission.death = death
            queued = [image for ticket in self._ready for image in ticket.queued]
            for ticket in self._ready:
                ticket.queued.clear()
            self._ready.clear()
        for image in queued:
            if image.future.set_running_or_notify_cancel():
                image.future.set_exception(death)
        for image in images:
            image.future.set_exception(death)
        self._on_death(death)


# Runs the model (`Runner.run`): returns one output row for each row, uint8 [n,224,224,3].
InferFn = Callable[[NDArray[np.uint8]], Outputs]
# Returns the novelty of each row of fc7 (`Reference.measure`). One call for a batch is cheaper than one for each image.
MeasureFn = Callable[[NDArray[np.float32]], list[Novelty]]


def run_batch(infer: InferFn, images: Sequence[QueuedImage], measure: MeasureFn | None = None) -> list[Prediction]:
    """Run the model once on all views of `images` and return one prediction per image. Raises what `infer` raises."""
    started = time.monotonic()
    outputs = infer(np.concatenate([views(image.pixels, image.views) for image in images]))
    run_seconds = time.monotonic() - started
    means: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    first = 0
    for image in images:
        rows = slice(first, first + image.views)
        first += image.views
        probabilities = average_views(outputs.probabilities[rows], image.views)
        means.append((probabilities[0], average_views(outputs.fc7[rows], image.views)[0]))
    novelties = [None] * len(images) if measure is None else measure(np.stack([fc7 for _, fc7 in means]))
    return [
        Prediction(probabilities, fc7, started - image.queued_at, run_seconds, novelty)
        for image, (probabilities, fc7), novelty in zip(images, means, novelties, strict=True)
    ]
