"""Changes that arrive together share a commit, and each caller gets the outcome of its own."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from index.catalog.database import connect
from index.catalog.writer import Writer
from index.errors import IndexUnavailableError, InvalidKeyError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    connection = connect(tmp_path / "t.db")
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)")
    connection.close()
    return tmp_path / "t.db"


def stored(path: Path) -> list[int]:
    connection = connect(path, read_only=True)
    found = [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]
    connection.close()
    return found


def insert(number: int, connection: sqlite3.Connection) -> int:
    connection.execute("INSERT INTO t VALUES (?)", (number,))
    return number


def queue_up(
    writer: Writer, pool: ThreadPoolExecutor, *works: Callable[[sqlite3.Connection], object]
) -> list[Future[object]]:
    """Hold the writer until all of `works` wait for it, so that they make one group."""
    started, go = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        started.set()
        go.wait(10)

    held = pool.submit(writer.run, hold)
    assert started.wait(10)
    waiting = [pool.submit(writer.run, work) for work in works]
    while writer._queue.qsize() < len(works):
        pass
    go.set()
    held.result(10)
    return waiting


def test_what_waits_together_shares_one_commit(path: Path) -> None:
    writer = Writer(connect(path), path)
    with ThreadPoolExecutor(20) as pool:
        works = [partial(insert, n) for n in range(10)]
        results = queue_up(writer, pool, *works)
        assert sorted(result.result(10) for result in results) == list(range(10))  # type: ignore[type-var]
    assert writer.commits == 2
    assert stored(path) == list(range(10))
    writer.close()


def test_one_that_fails_takes_back_its_own_changes_only(path: Path) -> None:
    def refuse(connection: sqlite3.Connection) -> None:
        insert(50, connection)
        raise InvalidKeyError("x", "is bad")

    def break_sql(connection: sqlite3.Connection) -> None:
        insert(60, connection)
        insert(60, connection)

    writer = Writer(connect(path), path)
    with ThreadPoolExecutor(20) as pool:
        for number, bad, error in ((1, refuse, InvalidKeyError), (3, break_sql, IndexUnavailableError)):
            results = queue_up(
                writer,
                pool,
                partial(insert, number),
                bad,
                partial(insert, number + 1),
            )
            assert results[0].result(10) == number
            assert results[2].result(10) == number + 1
            with pytest.raises(error):
                results[1].result(10)
    assert stored(path) == [1, 2, 3, 4]
    writer.close()


def test_the_change_is_on_disk_before_memory_hears_of_it_and_both_before_the_caller(path: Path) -> None:
    writer = Writer(connect(path), path)
    heard: list[list[int]] = []
    assert writer.run(partial(insert, 7), lambda _: heard.append(stored(path))) == 7
    assert heard == [[7]]
    writer.close()


def test_closing_finishes_what_is_queued(path: Path) -> None:
    writer = Writer(connect(path), path)
    with ThreadPoolExecutor(20) as pool:
        results = queue_up(writer, pool, *(partial(insert, n) for n in range(5)))
        writer.close()
        assert all(result.done() for result in results)
    assert stored(path) == [0, 1, 2, 3, 4]
    with pytest.raises(IndexUnavailableError, match="closed"):
        writer.run(partial(insert, 9))
