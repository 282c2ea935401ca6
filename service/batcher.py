"""Bring images of many requests together into runs of the model, and share it fairly.

Promises:
- Admission is counted in images and atomic: a request gets all its places or none. Places are held from before decoding
  until the answer, so the queue's limit bounds all work in the server. There are never more places than the model, at
  the rate that is measured, answers well within the deadline: what is admitted keeps it.
- One thread owns the model. An idle one starts a lone image at once; while it is busy images gather, and the next run
  takes up to `max_batch` rows, waiting for more at most until the oldest has waited `max_delay_s`.
- Requests take turns, image by image: one of 32 images does not hold up one of a single image.
- What nobody waits for any more (a cancelled future, a closed ticket) is left out of the run.
- A run that fails is repeated image by image, so that one image cannot harm another's. If all fail and a blank image
  fails too, the model is dead: all waiting requests fail at once, and `on_death` is called.
- Each image's answer is what it would have been alone: views are averaged image by image, and rows do not
  influence each other.

Does not: decode, know HTTP, keep deadlines (the caller's timeout cancels the futures).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from model_store.image import CROP, views
from model_store.runner import Outputs, average_views
from service.errors import DrainingError, QueueFullError, RunnerDeadError

_LONGEST_RETRY_S = 60
_SAFE_SHARE = 0.8  # of the deadline, for waiting: the rate varies, and decoding and answering take time too


class Run(Protocol):
    """The model: `Runner.run`."""

    def __call__(self, pixels: NDArray[np.uint8], /) -> Outputs:
        """Answer uint8 [n,224,224,3], one row for each."""
        ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_batch` in rows, `max_delay_s` and `deadline_s` in seconds, `queue_size` in images."""

    max_batch: int
    max_delay_s: float
    queue_size: int
    deadline_s: float = float("inf")


class Row(NamedTuple):
    """The model's answer for one image: float32 [K] and [4096]; seconds it waited, and seconds of its run."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]
    waited: float
    ran: float


@dataclass(slots=True)
class _Item:
    pixels: NDArray[np.uint8]  # [256, 256, 3]
    views: int
    since: float = field(default_factory=time.monotonic)
    future: Future[Row] = field(default_factory=Future)


class Ticket:
    """The places of one request in the queue. Use it as a context manager: leaving gives the places back."""

    def __init__(self, batcher: Batcher, images: int) -> None:
        self._batcher = batcher
        self.images = images
        self.waiting: deque[_Item] = deque()
        self.left = False

    def submit(self, pixels: NDArray[np.uint8], count: int = 1) -> Future[Row]:
        """Queue one prepared image, uint8 [256,256,3], with `count` views (1 or 10); the future gives its Row.

        It is cancelled where the places were given back before. Raises RunnerDeadError or DrainingError when no run
        will come any more.
        """
        return self._batcher._put(self, _Item(pixels, count))

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
    """The queue and the thread that owns the model. `close()` answers what is queued, then ends the thread."""

    def __init__(
        self,
        run: Run,
        limits: BatchLimits,
        *,
        on_run: Callable[[int, float], None] = _ignore_run,
        on_death: Callable[[RunnerDeadError], None] = _ignore_death,
    ) -> None:
        """`on_run(rows, seconds)` after each run and `on_death(error)` are called in the model's thread."""
        self._run = run
        self._limits = limits
        self._on_run = on_run
        self._on_death = on_death
        self._changed = threading.Condition()
        self._turns: deque[Ticket] = deque()  # those with images waiting, the next to be served first
        self._admitted = 0
        self._rate = 0.0  # images a second, smoothed; 0 until the first run
        self._closing = False
        self._dead: RunnerDeadError | None = None
        self._thread = threading.Thread(target=self._serve, name="fc7-model", daemon=True)
        self._thread.start()

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
        with self._changed:
            self._refuse_if_over()
            if (full := self._full(images)) is not None:
                raise full
            self._admitted += images
        return Ticket(self, images)

    def full(self) -> QueueFullError | None:
        """Return why not even one image would be admitted now, or None."""
        with self._changed:
            return self._full(1)

    def _full(self, images: int) -> QueueFullError | None:
        places = self._limits.queue_size
        if self._rate and self._admitted:  # alone, a request is always tried
            places = int(min(places, self._rate * self._limits.deadline_s * _SAFE_SHARE))
        if self._admitted + images <= places:
            return None
        return QueueFullError("images", places, self._retry_after())

    def close(self) -> None:
        """Admit nothing more, answer what is queued, end the thread. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _refuse_if_over(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._closing:
            raise DrainingError

    def _retry_after(self) -> int:
        """Seconds until about half of what is admitted is answered, by the measured rate."""
        if not self._rate:
            return 1
        return int(min(max(np.ceil(self._admitted / 2 / self._rate), 1), _LONGEST_RETRY_S))

    def _put(self, ticket: Ticket, item: _Item) -> Future[Row]:
        with self._changed:
            self._refuse_if_over()
            if ticket.left:
                item.future.cancel()
                return item.future
            if not ticket.waiting:
                self._turns.append(ticket)
            ticket.waiting.append(item)
            self._changed.notify_all()
        return item.future

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            self._admitted -= ticket.images
            ticket.left = True
            if ticket.waiting:
                self._turns.remove(ticket)
                abandoned, ticket.waiting = ticket.waiting, deque()
            else:
                abandoned = deque()
        for item in abandoned:
            item.future.cancel()

    def _serve(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            if batch and not self._answer(batch):
                return

    def _next_batch(self) -> list[_Item] | None:
        """Return the next run's images, once there are any; None when closing and all is answered."""
        with self._changed:
            idle = not self._turns
            while not self._turns:
                if self._closing:
                    return None
                self._changed.wait()
            if not idle:
                self._gather()
            return self._take()

    def _gather(self) -> None:
        """Wait until a run is full, or its oldest image has waited long enough. Holds the lock, the wait lets it go."""
        while self._turns and not self._closing:
            items = [item for ticket in self._turns for item in ticket.waiting]
            left = min(item.since for item in items) + self._limits.max_delay_s - time.monotonic()
            if left <= 0 or sum(item.views for item in items) >= self._limits.max_batch:
                return
            self._changed.wait(left)

    def _take(self) -> list[_Item]:
        """Take images in turn, one of each request, while they fit; at least one."""
        batch: list[_Item] = []
        rows = 0
        while self._turns:
            ticket = self._turns[0]
            if batch and rows + ticket.waiting[0].views > self._limits.max_batch:
                break
            self._turns.popleft()
            item = ticket.waiting.popleft()
            if ticket.waiting:
                self._turns.append(ticket)
            if item.future.set_running_or_notify_cancel():
                batch.append(item)
                rows += item.views
        return batch

    def _answer(self, batch: list[_Item]) -> bool:
        """Run a batch and answer its futures; return False when the model is dead."""
        started = time.monotonic()
        try:
            rows = self._run_items(batch, started)
        except Exception:
            return self._answer_one_by_one(batch)
        rate = len(batch) / (time.monotonic() - started)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
        for item, row in zip(batch, rows, strict=True):
            item.future.set_result(row)
        return True

    def _answer_one_by_one(self, batch: list[_Item]) -> bool:
        alive = False
        failed: list[tuple[_Item, Exception]] = []
        for item in batch:
            try:
                row = self._run_items([item], time.monotonic())[0]
            except Exception as error:
                failed.append((item, error))
            else:
                item.future.set_result(row)
                alive = True
        if not alive:
            try:
                self._run(np.zeros((1, CROP, CROP, 3), np.uint8))
            except Exception as error:
                self._die(error, [item for item, _ in failed])
                return False
        for item, failure in failed:
            item.future.set_exception(failure)
        return True

    def _run_items(self, items: list[_Item], started: float) -> list[Row]:
        pixels = np.concatenate([views(item.pixels, item.views) for item in items])
        outputs = self._run(pixels)
        ran = time.monotonic() - started
        self._on_run(len(pixels), ran)
        rows = []
        first = 0
        for item in items:
            own = slice(first, first + item.views)
            first += item.views
            probabilities, fc7 = outputs.probabilities[own], outputs.fc7[own]
            if item.views > 1:
                probabilities, fc7 = average_views(probabilities, item.views), average_views(fc7, item.views)
            rows.append(Row(probabilities[0], fc7[0], started - item.since, ran))
        return rows

    def _die(self, cause: Exception, batch: list[_Item]) -> None:
        death = RunnerDeadError(str(cause) or type(cause).__name__)
        death.__cause__ = cause
        with self._changed:
            self._dead = death
            waiting = [item for ticket in self._turns for item in ticket.waiting]
            for ticket in self._turns:
                ticket.waiting.clear()
            self._turns.clear()
        for item in waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(death)
        for item in batch:
            item.future.set_exception(death)
        self._on_death(death)
