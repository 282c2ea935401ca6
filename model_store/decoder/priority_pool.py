"""A pool of threads whose queue is ordered by arrival time and expected cost.

Guarantees: a cheap job overtakes expensive ones, but only those that arrived less than their `delay` before, so every
job gets its turn. A job that is cancelled while it waits never starts, and its arguments are freed immediately.
Out of scope: limits on the queue's length.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True, order=True)
class _Job:
    """A waiting job. turn: its arrival (monotonic) plus its delay, in seconds; seconds: expected duration."""

    turn: float
    number: int
    seconds: float = field(compare=False)
    work: Callable[[], Any] | None = field(compare=False)
    future: Future[Any] = field(compare=False)


class PriorityPool(Executor):
    """Threads that are started when they are first needed. `shutdown` ends them."""

    def __init__(
        self, threads: int, name: str, *, idle_s: float | None = None, on_idle: Callable[[], None] = lambda: None
    ) -> None:
        """on_idle: called in a thread of the pool when no job has arrived for `idle_s` seconds."""
        self.size = threads
        self._name, self._idle_s, self._on_idle = name, idle_s, on_idle
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._threads: list[threading.Thread] = []
        self._started: dict[int, float] = {}  # thread -> when its current job started (monotonic)
        self._number = 0
        self._closed = False

    def schedule(self, work: Callable[[], _T], *, delay: float = 0.0, seconds: float = 0.0) -> Future[_T]:
        """Run `work` in a thread, in its turn: as if it had arrived `delay` seconds later.

        seconds: its expected duration, for `expected_wait`. Raises RuntimeError after `shutdown`.
        """
        future: Future[_T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._number += 1
            job = _Job(time.monotonic() + delay, self._number, seconds, work, future)
            heappush(self._jobs, job)
            if len(self._jobs) + len(self._started) > len(self._threads) < self.size:
                thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        future.add_done_callback(lambda done: self._discard(job) if done.cancelled() else None)
        return future

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run `fn` in a thread, without a delay."""
        return self.schedule(partial(fn, *args, **kwargs))

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a thread."""
        with self._changed:
            return len(self._jobs)

    @property
    def running(self) -> int:
        """The number of jobs that run."""
        with self._changed:
            return len(self._started)

    def expected_wait(self, delay: float = 0.0) -> float:
        """Return for how many seconds a job with this delay would probably wait."""
        now = time.monotonic()
        with self._changed:
            ahead = sum(job.seconds for job in self._jobs if job.turn <= now + delay)
        return ahead / self.size

    def busy_seconds(self) -> float:
        """Return for how many seconds no thread has been free to take another job; 0 if one is free."""
        with self._changed:
            if len(self._started) < self.size:
                return 0.0
            return time.monotonic() - max(self._started.values())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs, and end the threads after the waiting ones, or cancel these."""
        with self._changed:
            self._closed = True
            cancelled = list(self._jobs) if cancel_futures else []
            self._changed.notify_all()
        for job in cancelled:
            job.future.cancel()
        if wait:
            for thread in self._threads:
                thread.join()

    def _discard(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                heapify(self._jobs)
            job.work = None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                work = job.work
                if work is not None and job.future.set_running_or_notify_cancel():
                    try:
                        result = work()
                    except BaseException as error:
                        job.future.set_exception(error)
                    else:
                        job.future.set_result(result)
                    del work
            finally:
                del job
                with self._changed:
                    self._started.pop(threading.get_ident(), None)

    def _next(self) -> _Job | None:
        """Wait for a job; return None when there will be no more."""
        while True:
            with self._changed:
                if self._jobs:
                    self._started[threading.get_ident()] = time.monotonic()
                    return heappop(self._jobs)
                if self._closed:
                    return None
                woken = self._changed.wait(self._idle_s)
            if not woken:
                self._on_idle()
