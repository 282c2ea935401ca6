"""Batches in threads, and writing one in the background while the next one is produced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from index.bulk.pipeline import batches_in_threads, run_in_background


def test_item_is_written_while_the_next_one_is_produced() -> None:
    produced = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        produced.set()
        yield 2

    def write(item: int) -> tuple[int, bool]:
        return item, produced.wait(10)

    assert list(run_in_background(write, items())) == [(1, True), (2, True)]
    assert list(run_in_background(write, ())) == []


def test_nothing_is_written_while_the_caller_handles_a_result() -> None:
    written: list[int] = []

    def write(item: int) -> int:
        written.append(item)
        return item

    for done in run_in_background(write, range(5)):
        assert written == list(range(done + 1))


def test_running_write_is_reported_before_ctrl_c_is_raised() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise KeyboardInterrupt

    reported: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        reported.extend(run_in_background(lambda item: item, items()))
    assert reported == [1, 2]


def test_error_of_a_write_ends_the_iteration() -> None:
    written: list[int] = []

    def write(item: int) -> int:
        if item == 2:
            raise OSError(28, "No space left on device")
        written.append(item)
        return item

    reported: list[int] = []
    with pytest.raises(OSError, match="No space left"):
        reported.extend(run_in_background(write, range(6)))
    assert reported == written == [0, 1]


def test_running_batches_are_stopped_when_the_block_ends() -> None:
    stopped = threading.Event()

    def work(batch: list[int]) -> bool:
        return batch == [0] or stopped.wait(10)

    def read_one() -> None:
        with batches_in_threads(work, range(9), size=1, workers=1, stop=stopped.set) as results:
            assert next(results)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        read_one()
    assert time.monotonic() - started < 9
