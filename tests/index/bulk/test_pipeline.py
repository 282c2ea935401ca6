"""The order of reading, embedding and writing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from index.bulk.pipeline import run_in_background


def test_an_item_is_written_while_the_next_one_is_made() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    def write(item: int) -> tuple[int, bool]:
        return item, made.wait(10)

    assert list(run_in_background(write, items())) == [(1, True), (2, True)]
    assert list(run_in_background(write, ())) == []


def test_nothing_is_written_while_the_reader_has_a_result() -> None:
    written: list[int] = []

    def write(item: int) -> int:
        written.append(item)
        return item

    for done in run_in_background(write, range(5)):
        assert written == list(range(done + 1))


def test_what_is_under_way_is_told_before_ctrl_c_ends_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise KeyboardInterrupt

    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        told.extend(run_in_background(lambda item: item, items()))
    assert told == [1, 2]


def test_what_the_writing_raises_ends_it() -> None:
    written: list[int] = []

    def write(item: int) -> int:
        if item == 2:
            raise OSError(28, "No space left on device")
        written.append(item)
        return item

    told: list[int] = []
    with pytest.raises(OSError, match="No space left"):
        told.extend(run_in_background(write, range(6)))
    assert told == written == [0, 1]
