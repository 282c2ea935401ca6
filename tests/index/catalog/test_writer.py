"""Group commit: concurrent changes share a commit, and each caller gets its own result or error."""

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


def stored_numbers(path: Path) -> list[int]:
    connection = connect(path, read_only=True)
    found = [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]
    connection.close()
    return found


def insert(number: int, connection: sqlite3.Connection) -> int:
    connection.execute("INSERT INTO t VALUES (?)", (number,))
    return number


def run_as_one_group(
    writer: Writer, pool: ThreadPoolExecutor, *works: Callable[[sqlite3.Connection], object]
) -> list[Future[object]]:
    """Block the writer until all of `works` are queued, so that they form one group."""
    started, release = threading.Event(), threading.Event()

    def block(_: sqlite3.Connection) -> None:
        started.set()
        release.wait(10)

    blocking = pool.submit(writer.run, block)
    assert started.wait(10)
    queued = [pool.submit(writer.run, work) for work in works]
    while writer._queue.qsize() < len(works):
        pass
    release.set()
    blocking.result(10)
    return queued


def test_queued_jobs_share_one_commit(path: Path) -> None:
    writer = Writer(connect(path), path)
    with ThreadPoolExecutor(20) as pool:
        works = [partial(insert, n) for n in range(10)]
        results = run_as_one_group(writer, pool, *works)
        assert sorted(result.result(10) for result in results) == list(range(10))  # type: ignore[type-var]
    assert writer.commits == 2
    assert stored_numbers(path) == list(range(10))
    writer.close()


def test_a_failed_job_rolls_back_only_its_own_changes(path: Path) -> None:
    def reject(connection: sqlite3.Connection) -> None:
        insert(50, connection)
        raise InvalidKeyError("x", "is bad")

    def break_sql(connection: sqlite3.Connection) -> None:
        insert(60, connection)
        insert(60, connection)

    writer = Writer(connect(path), path)
    with ThreadPoolExecutor(20) as pool:
        for number, bad, error in ((1, reject, InvalidKeyError), (3, break_sql, IndexUnavailableError)):
            results = run_as_one_group(
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
    assert stored_numbers(path) == [1, 2, 3, 4]
    writer.close()


def test_the_callback_runs_after_the_commit_and_before_run_returns(path: Path) -> None:
    writer = Writer(connect(path), path)
    seen_by_callback: list[list[int]] = []
    assert writer.run(partial(insert, 7), lambda _: seen_by_callback.append(stored_numbers(path))) == 7
    assert seen_by_callback == [[7]]
    writer.close()


def test_close_finishes_the_queued_jobs(path: Path) -> None:
    writer = Writer(connect(path), path)
    with ThreadPoolExecutor(20) as pool:
        results = run_as_one_group(writer, pool, *(partial(insert, n) for n in range(5)))
        writer.close()
        assert all(result.done() for result in results)
    assert stored_numbers(path) == [0, 1, 2, 3, 4]
    with pytest.raises(IndexUnavailableError, match="closed"):
        writer.run(partial(insert, 9))
