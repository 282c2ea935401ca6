"""The jobs of a home in a SQLite table, and their archives in files.

    jobs/jobs.db             one row for each job, one row for each entry that was skipped
    jobs/archives/ID/archive the archive of an accepted job
    jobs/uploads/ID/archive  an upload that is not accepted yet; removed at the next start
    jobs/lock                held by the process that runs the jobs

Guarantees: a change of a job is one transaction. An accepted job is on disk when `insert` returns. Nothing is deleted
that cannot be read, and no archive of an accepted job before the job has ended.
Out of scope: running jobs (`service.indexing.jobs`), power failures between two batches of images (the counts of the
last batches may then be lost, and their images are counted as unchanged).
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from index.catalog.database import connect, transaction, translated
from index.errors import ImageIndexError, IndexUnavailableError, translate_os_error
from index.records import now
from model_store.durable import locked, sync
from model_store.image_files import SkipKind, Skipped, shorten
from service.errors import JobNotFoundError, JobStoreError
from service.indexing.job import ARCHIVE, JobState

_FORMAT = 1
_SCHEMA = """
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
) WITHOUT ROWID;
"""
_COLUMNS = (
    "id, state, created, ended, archive_bytes, total, position, added, replaced, unchanged, skipped, ignored, kinds,"
    " batch, interruptions, error"
)


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

    @property
    def seen(self) -> int:
        """How many entries were added, found unchanged or skipped."""
        return self.added + self.replaced + self.unchanged + self.skipped

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Return the job of a row with `_COLUMNS`."""
        job = cls(*row)
        job.state = JobState(row[1])
        job.kinds, job.batch = json.loads(row[12]), json.loads(row[13] or "{}")
        return job


class JobStore:
    """The open table. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Create the table if it is missing. Raises JobStoreError; nothing is changed then."""
        self.folder = folder
        self._uploads, self._archives = folder / "uploads", folder / "archives"
        self._lock = threading.RLock()
        with ExitStack() as stack:
            try:
                for each in (self._uploads, self._archives):
                    each.mkdir(parents=True, exist_ok=True)
                if not stack.enter_context(locked(folder / "lock", wait=False)):
                    raise JobStoreError(folder, "another process runs the jobs of this folder")
                self._database = connect(folder / "jobs.db")
                stack.callback(self._database.close)
                self._create_table()
            except OSError as error:
                raise JobStoreError(folder, str(error)) from error
            except ImageIndexError as error:
                raise JobStoreError(folder, getattr(error, "reason", str(error))) from error
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the table."""
        with self._lock:
            self._stack.close()

    def _create_table(self) -> None:
        with translated(self.folder):
            [found] = self._database.execute("PRAGMA user_version").fetchone()
            if found > _FORMAT:
                raise JobStoreError(
                    self.folder, f"jobs.db has format {found}, and this fc7 supports {_FORMAT}: upgrade fc7"
                )
            if not found:
                with transaction(self._database):
                    for statement in _SCHEMA.split(";\n"):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {_FORMAT}")
            self._database.execute("SELECT count(*) FROM jobs").fetchone()

    # --- files ------------------------------------------------------------------------------------------------------

    def new_upload(self, job: str) -> Path:
        """Create the folder of an upload. Raises IndexFullError, IndexReadOnlyError."""
        folder = self._uploads / job
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise translate_os_error(error, self._uploads) from error
        return folder

    def archive(self, job: str) -> Path:
        """Return where the archive of an accepted job is."""
        return self._archives / job / ARCHIVE

    def keep_upload(self, job: str) -> int:
        """Move an upload to the archives of accepted jobs; return its size in bytes. Raises IndexFullError."""
        try:
            size = (self._uploads / job / ARCHIVE).stat().st_size
            (self._uploads / job).rename(self._archives / job)
            sync(self._archives)
        except OSError as error:
            raise translate_os_error(error, self._archives) from error
        return size

    def discard_archive(self, job: str) -> None:
        """Delete the archive of a job that has ended or was not accepted. If that fails, the next start tries again."""
        shutil.rmtree(self._archives / job, ignore_errors=True)

    def remove_uploads(self) -> None:
        """Remove the uploads that an earlier process did not accept."""
        for folder in self._uploads.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def unknown_archives(self) -> list[str]:
        """Return the ids of archives that no job has, for example because the table was replaced."""
        known = {job.id for job in self.select()}
        return sorted(each.name for each in self._archives.iterdir() if each.name not in known)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def insert(self, job: StoredJob, skipped: Sequence[Skipped] = ()) -> bool:
        """Add a job; return False if its id exists. It is on disk when this returns. Raises IndexFullError."""
        values = (
            *(getattr(job, name) for name in _COLUMNS.split(", ")[:12]),
            json.dumps(job.kinds),
            None,
            0,
            job.error,
        )
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

    def skipped(self, job: str, after: int, limit: int) -> list[tuple[int, Skipped]]:
        """Return up to `limit` skipped entries of a job and their numbers, from the number after `after`."""
        rows = self._all(
            "SELECT number, path, reason, kind FROM skipped WHERE job = ? AND number > ? ORDER BY number LIMIT ?",
            (job, after, limit),
        )
        return [(number, Skipped(path, reason, SkipKind(kind))) for number, path, reason, kind in rows]

    def move(self, job: str, *before: JobState, to: JobState, error: str | None = None, keep: bool = True) -> bool:
        """Change the state of a job if it is one of `before`; return whether it was changed.

        keep: its archive stays; otherwise discard it afterwards.
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
                """UPDATE jobs SET position = ?, added = ?, replaced = ?, unchanged = ?, skipped = ?, ignored = ?,
                   kinds = ?, batch = NULL, interruptions = 0, total = max(coalesce(total, 0), ?) WHERE id = ?""",
                (
                    *(job.position, job.added, job.replaced, job.unchanged, job.skipped, job.ignored),
                    *(json.dumps(job.kinds), job.seen, job.id),
                ),
            )
            self._insert_skipped(database, job.id, job.skipped - len(skipped), skipped)

    def forget(self, keep: int) -> None:
        """Delete the records of all ended jobs without an archive, except the last `keep`."""
        ended = [job.id for job in self.select() if job.state.ended and not job.archive_bytes]
        with self._writing() as database:
            database.executemany("DELETE FROM jobs WHERE id = ?", [(job,) for job in ended[: len(ended) - keep]])

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
