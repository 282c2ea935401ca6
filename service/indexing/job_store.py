"""The jobs of a home in a SQLite table.

    jobs/jobs.db             one row for each job, one row for each entry that was skipped
    jobs/lock                held by the process that runs the jobs
    jobs/...                 archives and result files, see `service.indexing.job_files`

Guarantees: a change of a job is one transaction. An accepted job is on disk when `insert` returns. Nothing is deleted
that cannot be read, and no archive of an accepted job before the job has ended. A table of an earlier format is
migrated when it is opened; its jobs are of the kind `archive`.
Out of scope: running jobs (`service.indexing.jobs`), power failures between two batches of images (the counts of the
last batches may then be lost, and their images are counted as unchanged).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from index.catalog.database import connect, transaction, translated
from index.errors import ImageIndexError, IndexUnavailableError
from index.records import now
from model_store.durable import locked
from model_store.image_files import SkipKind, Skipped, shorten
from service.indexing.errors import JobNotFoundError, JobStoreError
from service.indexing.job import JobKind, JobState
from service.indexing.job_files import JobFiles

# One script for each format, applied in order. `PRAGMA user_version` is the number of applied scripts.
_MIGRATIONS = (
    """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    created INTEGER NOT NULL,               -- microseconds since 1970, UTC
    ended INTEGER,
    archive_bytes INTEGER NOT NULL,         -- of the archive on disk
    total INTEGER,                          -- NULL until the entries are counted
    position INTEGER NOT NULL DEFAULT 0,    -- of the last entry in the archive that is finished
    added INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0,
    unchanged INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    ignored INTEGER NOT NULL DEFAULT 0,
    kinds TEXT NOT NULL DEFAULT '{}',       -- how many entries were skipped for each kind of reason
    batch TEXT,                             -- the images that are being added: {key: sha256}
    interruptions INTEGER NOT NULL DEFAULT 0,  -- ends of the process since the last progress
    error TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE TABLE skipped (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    number INTEGER NOT NULL,
    path TEXT NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID
""",
    """
ALTER TABLE jobs ADD COLUMN kind TEXT NOT NULL DEFAULT 'archive';
ALTER TABLE jobs ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}';
ALTER TABLE jobs ADD COLUMN processed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN result TEXT;
ALTER TABLE jobs ADD COLUMN result_file TEXT;
ALTER TABLE jobs ADD COLUMN result_bytes INTEGER NOT NULL DEFAULT 0
""",
)
_COLUMNS = (
    "id, state, created, ended, archive_bytes, total, position, added, replaced, unchanged, skipped, ignored, kinds,"
    " batch, interruptions, error, kind, parameters, processed, result, result_file, result_bytes"
)
_STORED_AS_JSON = ("kinds", "batch", "parameters", "result")


@dataclass(slots=True)
class StoredJob:
    """A row of the table. Times are in microseconds since 1970, UTC."""

    id: str
    state: JobState
    created: int
    ended: int | None = None
    archive_bytes: int = 0
    total: int | None = None
    position: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    ignored: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    batch: dict[str, str] = field(default_factory=dict)
    interruptions: int = 0
    error: str | None = None
    kind: JobKind = JobKind.ARCHIVE
    parameters: dict[str, Any] = field(default_factory=dict)
    processed: int = 0
    result: dict[str, Any] | None = None
    result_file: str | None = None
    result_bytes: int = 0

    @property
    def seen(self) -> int:
        """How many entries were added, found unchanged, processed or skipped."""
        return self.added + self.replaced + self.unchanged + self.processed + self.skipped

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Return the job of a row with `_COLUMNS`."""
        job = cls(*row)
        job.state, job.kind = JobState(job.state), JobKind(job.kind)
        for name in _STORED_AS_JSON:
            stored = getattr(job, name)
            setattr(job, name, json.loads(stored) if stored else {} if name == "batch" else None)
        return job

    def values(self) -> tuple[Any, ...]:
        """Return the row with `_COLUMNS`."""
        return tuple(
            json.dumps(value) if name in _STORED_AS_JSON and value is not None else value
            for name, value in ((name, getattr(self, name)) for name in _COLUMNS.split(", "))
        )


class JobStore:
    """The open table. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Create the table if it is missing. Raises JobStoreError; nothing is changed then."""
        self.folder = folder
        self._lock = threading.RLock()
        with ExitStack() as stack:
            try:
                self.files = JobFiles(folder)
                if not stack.enter_context(locked(folder / "lock", wait=False)):
                    raise JobStoreError(folder, "another process runs the jobs of this folder")
                self._database = connect(folder / "jobs.db")
                stack.callback(self._database.close)
                self._migrate()
            except OSError as error:
                raise JobStoreError(folder, str(error)) from error
            except ImageIndexError as error:
                raise JobStoreError(folder, getattr(error, "reason", str(error))) from error
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the table."""
        with self._lock:
            self._stack.close()

    def _migrate(self) -> None:
        """Create the tables, or bring those of an earlier format to the present one, in one transaction."""
        with translated(self.folder):
            [found] = self._database.execute("PRAGMA user_version").fetchone()
            newest = len(_MIGRATIONS)
            if found > newest:
                raise JobStoreError(
                    self.folder, f"jobs.db has format {found}, and this fc7 supports {newest}: upgrade fc7"
                )
            if found < newest:
                with transaction(self._database):
                    for script in _MIGRATIONS[found:]:
                        for statement in script.split(";\n"):
                            self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {newest}")
            self._database.execute(f"SELECT {_COLUMNS} FROM jobs LIMIT 1").fetchone()  # noqa: S608

    def insert(self, job: StoredJob, skipped: Sequence[Skipped] = ()) -> bool:
        """Add a job; return False if its id exists. It is on disk when this returns. Raises IndexFullError."""
        values = job.values()
        marks = ", ".join("?" * len(values))
        with self._writing(durable=True) as database:
            added = database.execute(
                f"INSERT OR IGNORE INTO jobs ({_COLUMNS}) VALUES ({marks})",  # noqa: S608
                values,
            ).rowcount
            if added:
                self._insert_skipped(database, job.id, 0, skipped)
        return bool(added)

    def get(self, job: str) -> StoredJob:
        """Return a job. Raises JobNotFoundError."""
        rows = self._all(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job,))  # noqa: S608
        if not rows:
            raise JobNotFoundError(job)
        return StoredJob.of(rows[0])

    def select(self, *states: JobState) -> list[StoredJob]:
        """Return the jobs in these states, or all jobs, oldest first."""
        chosen = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        rows = self._all(f"SELECT {_COLUMNS} FROM jobs {chosen} ORDER BY id", states)  # noqa: S608
        return [StoredJob.of(row) for row in rows]

    def first_skipped(self, limit: int, job: str | None = None) -> dict[str, list[Skipped]]:
        """Return up to `limit` skipped entries of a job, or of every job, by the ids of the jobs."""
        # CROSS JOIN makes SQLite go through the jobs; otherwise it would read all entries of `skipped`.
        rows = self._all(
            f"""SELECT job, path, reason, skipped.kind FROM jobs CROSS JOIN skipped ON job = id AND number <= ?
                {"" if job is None else "WHERE id = ?"} ORDER BY job, number""",  # noqa: S608
            (limit,) if job is None else (limit, job),
        )
        found: dict[str, list[Skipped]] = {}
        for owner, path, reason, kind in rows:
            found.setdefault(owner, []).append(Skipped(path, reason, SkipKind(kind)))
        return found

    def skipped(self, job: str, after: int, limit: int) -> list[tuple[int, Skipped]]:
        """Return up to `limit` skipped entries of a job and their numbers, from the number after `after`."""
        rows = self._all(
            "SELECT number, path, reason, kind FROM skipped WHERE job = ? AND number > ? ORDER BY number LIMIT ?",
            (job, after, limit),
        )
        return [(number, Skipped(path, reason, SkipKind(kind))) for number, path, reason, kind in rows]

    def move(self, job: str, *before: JobState, to: JobState, error: str | None = None, keep: bool = True) -> bool:
        """Change the state of a job if it is one of `before`; return whether it was changed.

        keep: its archive stays; otherwise delete it afterwards.
        """
        marks = ", ".join("?" * len(before))
        with self._writing(durable=to.ended) as database:
            changed = database.execute(
                f"""UPDATE jobs SET state = ?, ended = ?, error = ?, archive_bytes = archive_bytes * ?
                    WHERE id = ? AND state IN ({marks})""",  # noqa: S608
                (to, now() if to.ended else None, error, keep, job, *before),
            ).rowcount
        return bool(changed)

    def update(self, job: str, **values: int | str | None) -> None:
        """Change columns of a job."""
        with self._writing() as database:
            names = ", ".join(f"{name} = ?" for name in values)
            database.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), job))  # noqa: S608

    def save_progress(self, job: StoredJob, skipped: Sequence[Skipped]) -> None:
        """Store the position and the counts of a job, and the entries that were skipped since the last call."""
        with self._writing() as database:
            database.execute(
                """UPDATE jobs SET position = ?, added = ?, replaced = ?, unchanged = ?, processed = ?, skipped = ?,
                   ignored = ?, kinds = ?, batch = NULL, interruptions = 0, total = max(coalesce(?, 0), ?)
                   WHERE id = ?""",
                (
                    *(job.position, job.added, job.replaced, job.unchanged, job.processed, job.skipped),
                    *(job.ignored, json.dumps(job.kinds), job.total, job.seen, job.id),
                ),
            )
            self._insert_skipped(database, job.id, job.skipped - len(skipped), skipped)

    def restart(self, job: StoredJob) -> None:
        """Set the counts of a job to 0, and forget its skipped entries, because it counts them again."""
        job.processed = job.skipped = job.ignored = 0
        job.kinds = {}
        with self._writing() as database:
            database.execute("UPDATE jobs SET processed = 0, skipped = 0, ignored = 0 WHERE id = ?", (job.id,))
            database.execute("DELETE FROM skipped WHERE job = ?", (job.id,))

    def save_parameters(self, job: StoredJob) -> None:
        """Store the parameters of a job."""
        self.update(job.id, parameters=json.dumps(job.parameters))

    def save_result(self, job: StoredJob) -> None:
        """Store the result of a job. Raises IndexFullError."""
        if job.result_file is not None:
            job.result_bytes = (self.files.result_folder(job.id) / job.result_file).stat().st_size
        result = None if job.result is None else json.dumps(job.result)
        self.update(job.id, result=result, result_file=job.result_file, result_bytes=job.result_bytes)

    def discard_files(self, job: str, *, archive: bool = True) -> None:
        """Delete the result file and the archive of a job that has ended. If that fails, the next start tries again."""
        if archive:
            self.update(job, result_file=None, result_bytes=0, archive_bytes=0)
            self.files.discard_archive(job)
        else:
            self.update(job, result_file=None, result_bytes=0)
        self.files.discard_results([job])

    def remove_unneeded_files(self) -> None:
        """Remove uploads, archives and result files that no job needs, which a process left that was killed."""
        jobs = self.select()
        self.files.remove_uploads()
        self.files.remove_other_results(
            job.id for job in jobs if job.result_file or job.archive_bytes or not job.state.ended
        )
        for job in jobs:
            if job.state.ended and not job.archive_bytes:
                self.files.discard_archive(job.id)

    def insert_unknown_archives(self) -> None:
        """Add a job for each archive that the table does not have, for example because it was replaced.

        Raises OSError, IndexFullError.
        """
        for name in self.files.other_archives(job.id for job in self.select()):
            size = self.files.archive(name).stat().st_size
            kind, parameters = self.files.request_of(name)
            self.insert(StoredJob(name, JobState.WAITING, now(), archive_bytes=size, kind=kind, parameters=parameters))

    def forget(self, keep: int, keep_results: int) -> None:
        """Delete the oldest records of ended jobs without an archive, and the oldest result files of ended jobs.

        The last `keep` records and the last `keep_results` files stay.
        """
        ended = [job for job in self.select() if job.state.ended]
        with_result = [job.id for job in ended if job.result_file]
        for job in with_result[: max(0, len(with_result) - keep_results)]:
            self.discard_files(job, archive=False)
        records = [job.id for job in ended if not job.archive_bytes]
        with self._writing() as database:
            forgotten = records[: max(0, len(records) - keep)]
            database.executemany("DELETE FROM jobs WHERE id = ?", [(job,) for job in forgotten])
        self.files.discard_results(forgotten)

    @staticmethod
    def _insert_skipped(database: sqlite3.Connection, job: str, after: int, skipped: Sequence[Skipped]) -> None:
        database.executemany(
            "INSERT OR REPLACE INTO skipped (job, number, path, kind, reason) VALUES (?, ?, ?, ?, ?)",
            [
                (job, number, shorten(item.path), item.kind, item.reason)
                for number, item in enumerate(skipped, start=after + 1)
            ],
        )

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction. durable: it survives a power failure, not only the end of the process."""
        with self._lock, self._open_database() as database:
            database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with transaction(database):
                yield database

    def _all(self, query: str, values: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        with self._lock, self._open_database() as database:
            return database.execute(query, values).fetchall()

    @contextmanager
    def _open_database(self) -> Iterator[sqlite3.Connection]:
        try:
            with translated(self.folder):
                yield self._database
        except IndexUnavailableError:
            raise  # the disk is full or read-only, or the table is locked for a moment
        except ImageIndexError as error:
            raise JobStoreError(self.folder, getattr(error, "reason", str(error))) from error
