"""The one thread that writes: what arrives while it commits shares the next commit.

Promises: `run` returns after the job's changes are on disk, and its `committed` callback has run; jobs take effect in
one order, the same on disk and in the callbacks; a job that fails is undone alone, its neighbours are kept.
Does not: retry a job that failed by itself; read.
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

from index.catalog.database import roll_back, transaction, translate
from index.errors import IndexUnavailableError

T = TypeVar("T")
_MOST_JOBS = 256


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    committed: Callable[[T], None] | None
    future: Future[T]

    def finish(self, result: T) -> None:
        """Tell those in memory, then the caller: who has the answer must find it applied."""
        try:
            if self.committed is not None:
                self.committed(result)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Writer:
    """Owns the writing connection, in a thread of its own."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self.commits = 0
        # Held from the start of a commit until memory has heard of it: who holds it finds disk and memory alike.
        self.settled = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="fc7-index-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[sqlite3.Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """Run `work(connection)` in a transaction, wait until it is on disk, and return its result.

        `committed(result)` runs in the writer's thread after the commit and before anybody is answered.
        Raises what `work` raised, with its changes undone, or the index's error for a failed commit.
        """
        job = _Job(work, committed, Future())
        with self._closing:  # no job may be queued behind the end
            if self._closed:
                raise IndexUnavailableError(self._path, "it is closed")
            self._queue.put(job)
        return job.future.result()

    def close(self) -> None:
        """Finish what is queued, then end the thread and close the connection."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs = [job]
            ending = False
            while len(jobs) < _MOST_JOBS and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    ending = True
                    break
                jobs.append(following)
            with self.settled:
                self._commit(jobs)
            if ending:
                return

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        """Commit the jobs together; when that fails, one by one, so that each gets its own outcome."""
        done: list[tuple[_Job[Any], Any]] = []
        failed: list[tuple[_Job[Any], BaseException]] = []
        try:
            with transaction(self._connection):
                for job in jobs:
                    try:
                        done.append((job, self._step(job)))
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
        for job, problem in failed:
            job.future.set_exception(problem)

    def _step(self, job: _Job[T]) -> T:
        """Run one job so that its failure takes back its own changes only."""
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
