"""Run work in threads ahead of the reader, in order and in bounded memory.

Guarantees: results come in the order of the items, each exactly once; at most `window` items are in flight.
Out of scope: errors of the work, which stay in its future.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


@contextmanager
def prefetch(
    work: Callable[[In], Out], items: Iterable[In], workers: int | ThreadPoolExecutor, window: int
) -> Iterator[Iterator[tuple[In, Future[Out]]]]:
    """Run `work` in threads, at most `window` items ahead of the reader. Work that is left at the end is cancelled.

    workers: the number of threads, or an executor to use, which stays open.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix="fc7-decode") if isinstance(workers, int) else workers
    waiting: deque[tuple[In, Future[Out]]] = deque()

    def results() -> Iterator[tuple[In, Future[Out]]]:
        for item in items:
            waiting.append((item, executor.submit(work, item)))
            if len(waiting) >= window:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    try:
        yield results()
    finally:
        for _, future in waiting:
            future.cancel()
        if executor is not workers:
            executor.shutdown()
