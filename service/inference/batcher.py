"""The batch loop: collects images of many requests into batches, runs them and delivers the predictions.

Guarantees:
- A batch takes the images that are queued, up to `max_batch` rows and up to an equal share of the images that were
  admitted at a time since the last batch. It waits for images that are being decoded, and during another run for the
  next requests of clients that were answered, until the oldest image has waited `max_delay_s`, or if runs and decoding
  share all cores, since the last run. For images that are being decoded, it may wait as long as the last run took.
- If runs and decoding share cores, decoding threads run the batches. The batcher's own thread only runs those that
  become ready while none of them is waiting.
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
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model_store.image import CROP
from service.errors import QueueFullError, RunnerDeadError
from service.inference.admission import (
    Admission,
    BatchLimits,
    ExplainTask,
    Prediction,
    QueuedImage,
    Slots,
)
from service.inference.batch_run import InferFn, MeasureFn, run_batch
from service.inference.core_scheduler import CoreScheduler


class Ticket(Slots):
    """The queue slots of one request. As a context manager it releases them on exit."""

    __slots__ = ("_batcher",)

    def __init__(self, batcher: Batcher, images: int) -> None:
        super().__init__(images, pending=images)
        self._batcher = batcher

    def decoding(self) -> AbstractContextManager[None]:
        """Wait for a core and hold it to decode one image. Then run a batch in this thread, if one is ready.

        Raises CancelledError if the slots were released.
        """
        return self._batcher._decoding(self)

    def set_aside(self) -> None:
        """Do not let batches wait for one image of this request: decoding it takes long."""
        self._batcher._set_aside(self)

    def submit(
        self, pixels: NDArray[np.uint8], views: int = 1, explain: ExplainTask | None = None, *, wake: bool = True
    ) -> Future[Prediction]:
        """Queue one prepared image, uint8 [256,256,3], with 1 or 10 views; 1 if it is to be explained.

        wake: wake the batcher's thread if a batch is ready; unnecessary inside `decoding`.

        The future is cancelled if the slots were released. Raises RunnerDeadError or DrainingError if no batch will
        run any more.
        """
        return self._batcher._enqueue(self, QueuedImage(pixels, views, explain), wake=wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batcher._release(self)


class Batcher:
    """A queue of images, whose batches run in decoding threads (`Ticket.decoding`) or in a thread of its own."""

    def __init__(
        self,
        infer: InferFn,
        limits: BatchLimits,
        *,
        measure: MeasureFn | None = None,
        cores: int | None = None,
        streams: int = 1,
        on_run: Callable[[int, float], None] = lambda _rows, _seconds: None,
        on_death: Callable[[RunnerDeadError], None] = lambda _error: None,
    ) -> None:
        """Start the thread.

        infer: runs a batch. measure: returns the novelty of its images; None if the version has no reference.
        cores: shared by runs and decoding; None if the model runs on a device of its own (CUDA),
        where a batch starts as soon as possible. streams: runs at the same time (see `Runner`). `on_run(rows, seconds)`
        is called after each run and `on_death(error)` once, in the thread of the run.
        """
        self._infer = infer
        self._measure = measure
        self._limits = limits
        self._on_run = on_run
        self._on_death = on_death
        self._lock = threading.Lock()
        self._admission = Admission(limits)
        self._scheduler = CoreScheduler(self._lock, cores=cores, streams=streams, batch_is_ready=self._batch_is_ready)
        self._ready: deque[Ticket] = deque()  # requests with queued images; the first one is served next
        self._run_may_start = threading.Condition(self._lock)  # the thread waits for it
        self._waits_for_images = False  # the thread, without a time limit
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
            self._run_may_start.notify()
        self._thread.join()

    def _enqueue(self, ticket: Ticket, image: QueuedImage, *, wake: bool) -> Future[Prediction]:
        with self._lock:
            self._admission.check_open()
            if ticket.released:
                image.future.cancel()
                return image.future
            if not ticket.queued:
                self._ready.append(ticket)
            ticket.queued.append(image)
            self._admission.mark_queued(ticket)
            if wake:
                self._wake()
        return image.future

    def _set_aside(self, ticket: Ticket) -> None:
        with self._lock:
            self._admission.mark_queued(ticket)
            self._wake()

    def _release(self, ticket: Ticket) -> None:
        with self._lock:
            self._admission.release(ticket)
            abandoned = ticket.queued
            if abandoned:
                self._ready.remove(ticket)
                ticket.queued = deque()
            self._wake()
            self._scheduler.changed.notify_all()
        for image in abandoned:
            image.future.cancel()

    def _serve(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._run_batch(batch)

    def _next_batch(self) -> _Batch | None:
        """Wait for the next batch and take it; return None when there will be no more."""
        scheduler = self._scheduler
        with self._lock:
            while not self._may_run():
                if self._admission.closing and not self._ready and not scheduler.running:
                    return None
                wait = self._wait_budget() if scheduler.can_run() else None
                self._waits_for_images = wait is None
                self._run_may_start.wait(wait)
            self._waits_for_images = False
            return self._take()

    def _wake(self) -> None:
        """Wake a thread that may run a batch now, or the one that limits the wait of the first queued image."""
        if self._scheduler.cores is not None and self._scheduler.waiting and self._may_run():
            self._scheduler.changed.notify_all()
        elif self._admission.closing or (self._ready and self._waits_for_images) or self._may_run():
            self._run_may_start.notify()

    def _may_run(self) -> bool:
        return self._batch_is_ready() and self._scheduler.can_run()

    @contextmanager
    def _decoding(self, ticket: Ticket) -> Iterator[None]:
        """Hold a core inside the block. Before and after it, this thread runs the batches that are ready.

        If another thread ran them, the kernel would often let it wait for one core while the other one is idle.
        """
        with self._lock:
            self._scheduler.waiting.append(ticket)
        while (batch := self._wait_for_core(ticket)) is not None:
            self._run_batch(batch, then_waits=ticket)
        try:
            yield
        except BaseException:
            with self._lock:
                self._scheduler.end_decoding()
                self._wake()
            raise
        with self._lock:
            self._scheduler.end_decoding()
            batch = self._take() if self._scheduler.cores is not None and self._may_run() else None
            if batch is None:
                self._wake()
        if batch is not None:
            self._run_batch(batch)

    def _wait_for_core(self, ticket: Ticket) -> _Batch | None:
        """Take a core and return None, or return a batch to run first. Raises CancelledError if slots are released."""
        scheduler = self._scheduler
        with self._lock:
            while not ticket.released:
                if scheduler.may_decode(ticket):
                    scheduler.start_decoding(ticket)
                    return None
                if self._may_run():
                    scheduler.stop_waiting(ticket)  # those behind it need not wait for the run
                    return self._take()
                scheduler.changed.wait()
            scheduler.stop_waiting(ticket)
            self._wake()  # this thread may be the only one that was told of a batch
            raise CancelledError

    def _run_batch(self, batch: _Batch, *, then_waits: Ticket | None = None) -> None:
        """Run a batch. then_waits: the request whose turn to decode was given up for it."""
        try:
            if batch.images:
                self._answer(batch)
        finally:
            with self._lock:
                self._last_run_ended = time.monotonic()
                if then_waits is not None:
                    self._scheduler.waiting.appendleft(then_waits)
                self._scheduler.end_run(batch.cores)
                self._wake()

    def _batch_is_ready(self) -> bool:
        return bool(self._ready) and self._scheduler.has_free_stream() and self._wait_budget() == 0

    def _wait_budget(self) -> float | None:
        """Return for how many seconds a batch should still wait for more images; None if no image is queued."""
        images = [image for ticket in self._ready for image in ticket.queued]
        if not images:
            return None
        pending, scheduler = self._admission.pending, self._scheduler
        oldest = min(image.queued_at for image in images)
        full = sum(image.views for image in images) >= self._limits.max_batch or len(images) >= self._fair_share()
        device_was_idle = scheduler.cores is None and oldest > self._last_run_ended
        # Clients that were answered usually send their next requests soon.
        returning = self._admission.recent > self._admission.admitted and scheduler.running > 0
        if full or device_was_idle or self._admission.closing or not (pending or returning):
            return 0
        longest = self._limits.max_delay_s
        if pending or not scheduler.has_free_core():  # an image that is left over waits for a whole run
            longest = max(longest, self._last_run_seconds)
        # If a run uses all cores, no images are decoded during it: those that an earlier batch left over did not wait.
        started = max(oldest, self._last_run_ended) if scheduler.cores and scheduler.streams == 1 else oldest
        return max(0.0, started + longest - time.monotonic())

    def _fair_share(self) -> int:
        """Return how many images a batch takes at most: all batches get equal parts, in as few rounds as possible.

        Unequal batches would stay unequal, because clients that are answered together send their next requests
        together. Requests in the longer batches would always wait longer. The number of admitted images is low for a
        moment after each batch, so the highest number since the last batch counts.
        """
        admitted = self._admission.recent
        rounds = max(self._scheduler.streams, -(-admitted // self._limits.max_batch))
        return -(-admitted // rounds)

    def _take(self) -> _Batch:
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
        self._admission.mark_taken()
        scheduler = self._scheduler
        all_cores = scheduler.streams == 1 or (
            len(images) == self._admission.admitted and scheduler.free_cores == scheduler.cores
        )
        return _Batch(images, scheduler.start_run(all_cores=all_cores), all_cores)

    def _answer(self, batch: _Batch) -> None:
        """Run a batch and set its futures."""
        images = batch.images
        try:
            predictions = self._run(batch, images)
        except Exception:
            self._answer_one_by_one(batch)
            return
        with self._lock:
            self._last_run_seconds = predictions[0].run_seconds
            # Decoding between two batches counts too, so the rate is measured from the end of one to the next.
            started = max(self._last_run_ended, min(image.queued_at for image in images))
            self._admission.record_rate((time.monotonic() - started) / len(images))
        for image, prediction in zip(images, predictions, strict=True):
            image.future.set_result(prediction)

    def _answer_one_by_one(self, batch: _Batch) -> None:
        alive = False
        failed: list[tuple[QueuedImage, Exception]] = []
        for image in batch.images:
            try:
                [prediction] = self._run(batch, [image])
            except Exception as error:
                failed.append((image, error))
            else:
                image.future.set_result(prediction)
                alive = True
        if not alive:
            try:
                self._infer(np.zeros((1, CROP, CROP, 3), np.uint8), all_cores=batch.all_cores)
            except Exception as error:
                self._die(error, batch.images)
                return
        for image, failure in failed:
            image.future.set_exception(failure)

    def _run(self, batch: _Batch, images: list[QueuedImage]) -> list[Prediction]:
        predictions = run_batch(partial(self._infer, all_cores=batch.all_cores), images, self._measure)
        self._on_run(sum(image.views for image in images), predictions[0].run_seconds)
        return predictions

    def _die(self, cause: Exception, images: list[QueuedImage]) -> None:
        """Fail `images` and all queued images with RunnerDeadError."""
        death = RunnerDeadError(str(cause) or type(cause).__name__)
        death.__cause__ = cause
        with self._lock:
            first = self._admission.death is None
            self._admission.death = self._admission.death or death
            queued = [image for ticket in self._ready for image in ticket.queued]
            for ticket in self._ready:
                ticket.queued.clear()
            self._ready.clear()
        for image in queued:
            if image.future.set_running_or_notify_cancel():
                image.future.set_exception(death)
        for image in images:
            image.future.set_exception(death)
        if first:  # another stream may have found the same
            self._on_death(death)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images to run together, and the cores that are reserved for it."""

    images: list[QueuedImage]
    cores: int
    all_cores: bool
