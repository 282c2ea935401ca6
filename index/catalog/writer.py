"""The writer thread with group commit: jobs that arrive during a commit share the next one.

Guarantees: `run` returns after the job's changes are on disk and its `committed` callback has run. Callbacks run in the
order of the commits. A job that fails is rolled back alone; the other jobs of its group are committed.
While there are no jobs, the space of deleted images is returned to the file system in small steps, so a job waits for
one step at most.
Out of scope: retrying failed jobs; reading.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from index.catalog.database import BUSY_S, roll_back, transaction, translate
from index.errors import IndexUnavailableError

T = TypeVar("T")
_MAX_GROUP = 256
_IDLE_S = 0.5  # without jobs, until space is returned
_PAUSE_S = 0.01  # between two steps
_PAGES_PER_STEP = 512  # 2 MB
_KEPT_PAGES = 1024  # free pages that stay in the file for the next additions


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    committed: Callable[[T], None] | None
    future: Future[T]

    def finish(self, result: T) -> None:
        """Run the callback, then return the result to the caller, which must see the change in memory."""
        try:
            if self.committed is not None:
                self.committed(result)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Writer:
    """Owns the only writing connection and runs the jobs in its own thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self.commits = 0  # since the catalog was opened
        # Held from the start of a commit until its callbacks have run. Its holder sees the same state on disk and in
        # memory.
        self.commit_lock = threading.Lock()
        self._wait_s: float | None = _IDLE_S  # for a job, until the next step; None: for ever
        self._thread = threading.Thread(target=self._serve, name="fc7-index-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[sqlite3.Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """Run `work(connection)` in a transaction, wait until it is on disk, and return its result.

        `committed(result)` runs in the writer thread, after the commit and before `run` returns. If `work` raises, its
        changes are rolled back and the error is raised here; a failed commit raises an error of the index.
        """
        job = _Job(work, committed, Future())
        with self._closing:  # no job may be queued after the end mark
            if self._closed:
                raise IndexUnavailableError(self._path, "it was closed")
            self._queue.put(job)
        return job.future.result()

    def close(self) -> None:
        """Finish the queued jobs, stop the thread and close the connection."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while (job := self._next_job()) is not None:
            jobs = [job]
            following: _Job[Any] | None = job
            while len(jobs) < _MAX_GROUP and not self._queue.empty() and (following := self._queue.get()) is not None:
                jobs.append(following)
            with self.commit_lock:
                self._commit(jobs)
            if following is None:
                return
            self._wait_s = _IDLE_S

    def _next_job(self) -> _Job[Any] | None:
        """Wait for a job; meanwhile, return free space to the file system."""
        while True:
            try:
                return self._queue.get(timeout=self._wait_s)
            except queue.Empty:
                self._wait_s = self._give_back_space()

    def _give_back_space(self) -> float | None:
        """Do one step. Returns how long to wait until the next one; None if there is nothing more to do."""
        run = self._connection.execute
        try:
            if run("PRAGMA freelist_count").fetchone()[0] > _KEPT_PAGES:
                before = run("PRAGMA page_count").fetchone()[0]
                # `execute` would end the statement after its first page, because it has no result columns.
                self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
                # A catalog that was created without auto_vacuum does not shrink, except by `fc7 index optimize`.
                return _PAUSE_S if run("PRAGMA page_count").fetchone()[0] < before else None
            run("PRAGMA busy_timeout = 0").fetchone()  # the log is emptied only if no reader uses it now
            run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            run(f"PRAGMA busy_timeout = {int(1000 * BUSY_S)}").fetchone()
        except sqlite3.Error as error:  # for example a full disk; tried again after the next commit
            structlog.get_logger(__name__).warning("space not returned", path=str(self._path), detail=str(error))
        return None

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        """Commit the jobs together; if that fails, one by one, so that each gets its own result or error."""
        done: list[tuple[_Job[Any], Any]] = []
        failed: list[tuple[_Job[Any], BaseException]] = []
        try:
            with transaction(self._connection):
                for job in jobs:
                    try:
                        done.append((job, self._run_job(job)))
                    except sqlite3.Error:
                        raise
                    except BaseException as error:
                        failed.append((job, error))
        except sqlite3.Error as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
            else:
                translated = translate(error, self._path)
                translated.__cause__ = error
                jobs[0].future.set_exception(translated)
            return
        self.commits += 1
        for job, result in done:
            job.finish(result)
        for job, failure in failed:
            job.future.set_exception(failure)

    def _run_job(self, job: _Job[T]) -> T:
        """Run one job in a savepoint, so that a failure rolls back only its own changes."""
        self._connection.execute("SAVEPOINT job")
        try:
            result = job.work(self._connection)
        except sqlite3.Error:
            roll_back(self._connection)
            raise
        except BaseException:
            self._connection.execute("ROLLBACK TO job")
            raise
        finally:
            if self._connection.in_transaction:
                self._connection.execute("RELEASE job")
        return result
