"""Bring images of many requests together into runs of the model, and share it fairly.

Promises:
- Admission is counted in images and atomic: a request gets all its places or none. Places are held from before decoding
  until the answer, so the queue's limit bounds all work in the server. There are never more places than the model, at
  the rate that is measured, answers well within the deadline: what is admitted keeps it.
- A run takes what waits, up to `max_batch` rows, and no more than an equal part of all that is admitted; it waits for
  images that are being decoded, never for what may come, at most until the oldest has waited `max_delay_s` (while every
  core decodes: as long as a run takes).
- A lone image has all cores. Of more, up to `streams` runs go side by side, each on its share of the cores.
- Where runs and decoding share `cores`, neither takes one from the other: images are decoded on cores that no run has,
  in the order of their coming, and give way to a run that can begin.
- Requests take turns, image by image: one of 32 images does not hold up one of a single image.
- What nobody waits for any more (a cancelled future, a closed ticket) is left out of the run.
- A run that fails is repeated image by image, so that one image cannot harm another's. If all fail and a blank image
  fails too, the model is dead: all waiting requests fail at once, and `on_death` is called.
- Each image's answer is what it would have been alone, but for rounding where the version has a graph for batches:
  views are averaged image by image, and rows do not influence each other.

Does not: decode (who does asks for a core: `Ticket.decoding`), know HTTP, keep deadlines (the caller's timeout cancels
the futures).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model_store.image import CROP
from service.errors import DrainingError, QueueFullError, RunnerDeadError
from service.inference.batch import QueuedImage, Row, Run, run_items

_LONGEST_RETRY_S = 60
_SAFE_SHARE = 0.8  # of the deadline, for waiting: the rate varies, and decoding and answering take time too


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_batch` in rows, `max_delay_s` and `deadline_s` in seconds, `queue_size` in images."""

    max_batch: int
    max_delay_s: float
    queue_size: int
    deadline_s: float = float("inf")


class Ticket:
    """The places of one request in the queue. Use it as a context manager: leaving gives the places back."""

    def __init__(self, batcher: Batcher, images: int) -> None:
        self._batcher = batcher
        self.images = images
        self.coming = images  # not submitted yet
        self.waiting: deque[QueuedImage] = deque()
        self.left = False

    def decoding(self) -> AbstractContextManager[None]:
        """Wait for a core, and hold it to decode one image. Raises CancelledError where the places were given back."""
        return self._batcher._core_for(self)

    def submit(self, pixels: NDArray[np.uint8], count: int = 1) -> Future[Row]:
        """Queue one prepared image, uint8 [256,256,3], with `count` views (1 or 10); the future gives its Row.

        It is cancelled where the places were given back before. Raises RunnerDeadError or DrainingError when no run
        will come any more.
        """
        return self._batcher._put(self, QueuedImage(pixels, count))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batcher._leave(self)


def _ignore_run(_rows: int, _seconds: float) -> None:
    return None


def _ignore_death(_error: RunnerDeadError) -> None:
    return None


class Batcher:
    """The queue, and a thread for each stream of runs. `close()` answers what is queued, then ends the threads."""

    def __init__(
        self,
        run: Run,
        limits: BatchLimits,
        *,
        run_beside: Run | None = None,
        streams: int = 1,
        cores: int | None = None,
        on_run: Callable[[int, float], None] = _ignore_run,
        on_death: Callable[[RunnerDeadError], None] = _ignore_death,
    ) -> None:
        """`run` has all cores; `run_beside` (`run` by default) is called by up to `streams` threads at a time.

        cores: what runs and decoding share; None where they do not, as on CUDA: then a run begins as soon as it can.
        `on_run(rows, seconds)` after each run and `on_death(error)` are called in the run's thread.
        """
        self._run = run
        self._run_beside = run_beside or run
        self._streams, self._cores = streams, cores
        self._shared = cores if streams > 1 else None  # with one stream, runs and decoding overlap as they come
        self._limits = limits
        self._on_run = on_run
        self._on_death = on_death
        self._lock = threading.Lock()
        # A thread that is woken for nothing takes Python's lock from one that has an answer to give.
        self._run_may_begin = threading.Condition(self._lock)  # any one of the runs' threads will do
        self._core_may_be_free = threading.Condition(self._lock)  # who decodes next sees for himself
        self._turns: deque[Ticket] = deque()  # those with images waiting, the next to be served first
        self._admitted = 0
        self._coming = 0  # of these, those that are not queued yet: they are being decoded
        self._decoders: deque[Ticket] = deque()  # who waits for a core, the next to have one first
        self._decoding = 0  # images that have a core now
        self._held = 0  # cores that runs have
        self._running = 0  # runs under way
        self._pace = 0.0  # seconds an image, smoothed; 0 until the first run
        self._ran = 0.0  # seconds of the last run
        self._ended = 0.0  # when it ended (monotonic)
        self._closing = False
        self._dead: RunnerDeadError | None = None
        self._threads = [threading.Thread(target=self._serve, name="fc7-model", daemon=True) for _ in range(streams)]
        for thread in self._threads:
            thread.start()

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered."""
        return self._admitted

    @property
    def death(self) -> RunnerDeadError | None:
        """Why the model is dead, or None while it lives."""
        return self._dead

    def admit(self, images: int) -> Ticket:
        """Take `images` places, all or none. Raises QueueFullError, DrainingError or RunnerDeadError."""
        with self._lock:
            self._refuse_if_over()
            if (full := self._full(images)) is not None:
                raise full
            self._admitted += images
            self._coming += images
        return Ticket(self, images)

    def full(self) -> QueueFullError | None:
        """Return why not even one image would be admitted now, or None."""
        with self._lock:
            return self._full(1)

    def _full(self, images: int) -> QueueFullError | None:
        places = self._limits.queue_size
        if self._pace and self._admitted:  # alone, a request is always tried
            places = int(min(places, self._limits.deadline_s * _SAFE_SHARE / self._pace))
        if self._admitted + images <= places:
            return None
        return QueueFullError("images", places, self._retry_after())

    def close(self) -> None:
        """Admit nothing more, answer what is queued, end the threads. Safe to call twice."""
        with self._lock:
            self._closing = True
            self._run_may_begin.notify_all()
        for thread in self._threads:
            thread.join()

    def _refuse_if_over(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._closing:
            raise DrainingError

    def _retry_after(self) -> int:
        """Seconds until about half of what is admitted is answered, at the measured pace; at least 1."""
        return int(min(max(np.ceil(self._admitted / 2 * self._pace), 1), _LONGEST_RETRY_S))

    def _put(self, ticket: Ticket, item: QueuedImage) -> Future[Row]:
        with self._lock:
            self._refuse_if_over()
            if ticket.left:
                item.future.cancel()
                return item.future
            if not ticket.waiting:
                self._turns.append(ticket)
            ticket.waiting.append(item)
            self._coming -= min(ticket.coming, 1)
            ticket.coming = max(ticket.coming - 1, 0)
            self._run_may_begin.notify()
        return item.future

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            self._admitted -= ticket.images
            self._coming -= ticket.coming
            ticket.coming, ticket.left = 0, True
            if ticket.waiting:
                self._turns.remove(ticket)
                abandoned, ticket.waiting = ticket.waiting, deque()
            else:
                abandoned = deque()
            self._run_may_begin.notify()
            self._core_may_be_free.notify_all()
        for item in abandoned:
            item.future.cancel()

    @contextmanager
    def _core_for(self, ticket: Ticket) -> Iterator[None]:
        with self._lock:
            self._decoders.append(ticket)
            while not (ticket.left or self._may_decode(ticket)):
                self._core_may_be_free.wait()
            self._decoders.remove(ticket)
            self._core_may_be_free.notify_all()
            if ticket.left:
                raise CancelledError
            self._decoding += 1
            self._run_may_begin.notify()  # it waits less long for what has a core
        try:
            yield
        finally:
            with self._lock:
                self._decoding -= 1
                self._run_may_begin.notify()
                self._core_may_be_free.notify_all()

    def _may_decode(self, ticket: Ticket) -> bool:
        if self._shared is None:
            return True
        return self._decoders[0] is ticket and self._has_core() and not self._run_is_due()

    def _serve(self) -> None:
        while (taken := self._next_batch()) is not None:
            batch, run, cores = taken
            try:
                alive = not batch or self._answer(batch, run)
            finally:
                with self._lock:
                    self._held -= cores
                    self._running -= 1
                    self._ended = time.monotonic()
                    self._core_may_be_free.notify_all()
            if not alive:
                return

    def _next_batch(self) -> tuple[list[QueuedImage], Run, int] | None:
        """Return the next run's images, what runs them and on how many cores; None when there will be no more."""
        with self._lock:
            while not (self._run_is_due() and self._has_core()):
                if self._dead is not None or (self._closing and not self._turns):
                    self._run_may_begin.notify()  # the next thread ends too: it may wait for a core, and no time
                    return None
                self._run_may_begin.wait(self._patience() if self._has_core() else None)
            return self._take()

    def _has_core(self) -> bool:
        return self._shared is None or self._decoding + self._held < self._shared

    def _run_is_due(self) -> bool:
        return bool(self._turns) and self._running < self._streams and self._patience() == 0

    def _patience(self) -> float | None:
        """Return for how many seconds a run should wait for more images; None where none waits for it."""
        items = [item for ticket in self._turns for item in ticket.waiting]
        if not items:
            return None
        oldest = min(item.since for item in items)
        came_to_idle = self._cores is None and oldest > self._ended and not self._running
        full = sum(item.views for item in items) >= self._limits.max_batch or len(items) >= self._share()
        if full or came_to_idle or self._closing or not self._coming:
            return 0
        most = self._limits.max_delay_s
        if not self._has_core() or self._coming > self._decoding:  # no core stands idle meanwhile
            most = max(most, self._ran)
        return max(0.0, oldest + most - time.monotonic())

    def _take(self) -> tuple[list[QueuedImage], Run, int]:
        """Take images in turn, one of each request, while they fit; at least one."""
        waiting = sum(len(ticket.waiting) for ticket in self._turns)
        alone = not self._running and (self._streams == 1 or (waiting == 1 and not self._coming))
        share = self._share()
        batch: list[QueuedImage] = []
        rows = 0
        while self._turns:
            ticket = self._turns[0]
            if batch and (len(batch) >= share or rows + ticket.waiting[0].views > self._limits.max_batch):
                break
            self._turns.popleft()
            item = ticket.waiting.popleft()
            if ticket.waiting:
                self._turns.append(ticket)
            if item.future.set_running_or_notify_cancel():
                batch.append(item)
                rows += item.views
        cores = (self._cores or 0) // (1 if alone else self._streams)
        self._running += 1
        self._held += cores
        if self._turns:
            self._run_may_begin.notify()
        self._core_may_be_free.notify_all()  # who decodes waited for this
        return batch, self._run if alone else self._run_beside, cores

    def _share(self) -> int:
        """Return how many images a run takes at most: an equal part, in as few rounds as `max_batch` allows, of all.

        Runs of unequal size would stay so, since who was answered together comes again together, and one request would
        wait for a short run, another for a long one.
        """
        rounds = -(-self._admitted // (self._streams * self._limits.max_batch)) or 1
        return -(-self._admitted // (self._streams * rounds))

    def _answer(self, batch: list[QueuedImage], run: Run) -> bool:
        """Run a batch and answer its futures; return False when the model is dead."""
        try:
            rows = self._rows(batch, run)
        except Exception:
            return self._answer_one_by_one(batch, run)
        with self._lock:
            now = time.monotonic()
            self._ran = rows[0].ran
            # Where runs overlap or follow one another, what counts is from the end of one to the end of the next.
            pace = (now - max(self._ended, min(item.since for item in batch))) / len(batch)
            self._pace = pace if not self._pace else 0.8 * self._pace + 0.2 * pace
        for item, row in zip(batch, rows, strict=True):
            item.future.set_result(row)
        return True

    def _answer_one_by_one(self, batch: list[QueuedImage], run: Run) -> bool:
        alive = False
        failed: list[tuple[QueuedImage, Exception]] = []
        for item in batch:
            try:
                [row] = self._rows([item], run)
            except Exception as error:
                failed.append((item, error))
            else:
                item.future.set_result(row)
                alive = True
        if not alive:
            try:
                run(np.zeros((1, CROP, CROP, 3), np.uint8))
            except Exception as error:
                self._die(error, [item for item, _ in failed])
                return False
        for item, failure in failed:
            item.future.set_exception(failure)
        return True

    def _rows(self, items: list[QueuedImage], run: Run) -> list[Row]:
        rows = run_items(run, items)
        self._on_run(sum(item.views for item in items), rows[0].ran)
        return rows

    def _die(self, cause: Exception, batch: list[QueuedImage]) -> None:
        death = RunnerDeadError(str(cause) or type(cause).__name__)
        death.__cause__ = cause
        with self._lock:
            first = self._dead is None  # else another stream found it out
            self._dead = self._dead or death
            waiting = [item for ticket in self._turns for item in ticket.waiting]
            for ticket in self._turns:
                ticket.waiting.clear()
            self._turns.clear()
            self._run_may_begin.notify_all()
        for item in waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(death)
        for item in batch:
            item.future.set_exception(death)
        if first:
            self._on_death(death)
