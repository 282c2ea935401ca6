"""Ordered prefetching in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from model_store.prefetch import prefetch


def test_results_come_in_the_order_of_the_items() -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number

    with prefetch(work, range(20), 4, 8) as results:
        assert [(item, future.result()) for item, future in results] == [(number, number) for number in range(20)]


def test_at_most_window_items_are_taken_ahead_of_the_reader() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    with prefetch(lambda item: item, items(), 2, 3) as results:
        for read, _ in enumerate(results, start=1):
            assert len(taken) <= read + 2


def test_an_executor_stays_open_and_the_remaining_work_is_cancelled() -> None:
    release = threading.Event()
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        if item > 0:
            release.wait(10)
        return item

    with ThreadPoolExecutor(1) as executor:
        with prefetch(work, range(5), executor, 5) as results:
            first, future = next(results)
            assert (first, future.result()) == (0, 0)
        release.set()
        assert executor.submit(lambda: "open").result() == "open"
        assert len(started) <= 2
