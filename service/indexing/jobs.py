"""Background jobs that outlive their request: stored on disk, run one after the other, observed and cancelled.

Guarantees: an accepted job survives a restart; an interrupted job starts again, which is safe because images it already
added are skipped; a cancelled job stops after the current batch of images; a finished job leaves only its record, and
the records of the last `_KEPT_RECORDS` finished jobs are kept.
Out of scope: what a job does (`Work`); running two jobs at the same time.

On disk, a job is a folder with `job.json` and, until the job has ended, `archive`. A folder without `job.json` is an
upload that was never accepted.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from index.errors import translate_os_error
from model_store.durable import write_atomic
from model_store.errors import Fc7Error
from service.errors import JobNotFoundError, QueueFullError

ARCHIVE = "archive"
_RECORD = "job.json"
_INTERNAL_ERROR = "Internal error. The log of the server has the details."
_KEPT_RECORDS = 100
_MAX_WAITING = 16
_MAX_LISTED = 100


class JobState(StrEnum):
    """The state of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job has finished, failed or was cancelled."""
        return self not in (JobState.WAITING, JobState.RUNNING)


class Skipped(BaseModel):
    """An image that was not added, and the reason."""

    name: str
    reason: str


class JobInfo(BaseModel):
    """A job and its progress. seen = added + replaced + unchanged + skipped; times are in UTC.

    skipped_images: the first 100 skipped images; error: why the job failed.
    """

    id: str
    state: JobState = JobState.WAITING
    created: datetime
    ended: datetime | None = None
    total: int
    seen: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    skipped_images: list[Skipped] = Field(default_factory=list)
    error: str | None = None

    def skip(self, name: str, reason: str) -> None:
        """Count an image that was not added, and record the reason."""
        self.skipped += 1
        self.seen += 1
        if len(self.skipped_images) < _MAX_LISTED:
            self.skipped_images.append(Skipped(name=name, reason=reason))


# (job, its folder, stopped) -> None: does the job, and counts in it, until it is done or `stopped()` is true.
Work = Callable[[JobInfo, Path, Callable[[], bool]], None]


class Jobs:
    """The jobs of a home, and the thread that runs them."""

    def __init__(self, folder: Path, work: Work, on_error: Callable[[str, BaseException], None]) -> None:
        """Start the jobs that an earlier process left unfinished. on_error: called with the id of a failed job."""
        self._folder, self._work, self._on_error = folder, work, on_error
        self._lock = threading.Lock()
        self._jobs: dict[str, JobInfo] = {}
        self._cancelled: set[str] = set()
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._load()
        self._thread = threading.Thread(target=self._run, name="fc7-jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current batch of images. The next process starts the job again."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    def new_folder(self) -> Path:
        """Create the folder of a job that is not accepted yet. Raises IndexFullError, IndexReadOnlyError."""
        folder = self._folder / (datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f-") + secrets.token_hex(4))
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise translate_os_error(error, self._folder) from error
        return folder

    def check_capacity(self) -> None:
        """Raise QueueFullError if too many jobs are waiting."""
        with self._lock:
            if sum(not job.state.ended for job in self._jobs.values()) >= _MAX_WAITING:
                raise QueueFullError("jobs", _MAX_WAITING, 60)

    def accept(self, folder: Path, total: int) -> JobInfo:
        """Queue the job in `folder`. Raises QueueFullError, IndexFullError, IndexReadOnlyError."""
        self.check_capacity()
        job = JobInfo(id=folder.name, created=datetime.now(UTC), total=total)
        try:
            self._save(job)
        except OSError as error:
            raise translate_os_error(error, self._folder) from error
        with self._lock:
            self._jobs[job.id] = job
        self._waiting.put(job.id)
        return self.get(job.id)

    def list(self) -> list[JobInfo]:
        """Return all jobs, newest first."""
        with self._lock:
            return [job.model_copy(deep=True) for _, job in sorted(self._jobs.items(), reverse=True)]

    def get(self, job_id: str) -> JobInfo:
        """Return the current state of a job. Raises JobNotFoundError."""
        with self._lock:
            if job_id not in self._jobs:
                raise JobNotFoundError(job_id)
            return self._jobs[job_id].model_copy(deep=True)

    def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job; a job that has ended does not change. Raises JobNotFoundError."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                raise JobNotFoundError(job_id)
            waiting = job.state is JobState.WAITING
            if not job.state.ended:
                self._cancelled.add(job_id)
            if not waiting:
                return job.model_copy(deep=True)
        self._end(job, JobState.CANCELLED)
        return self.get(job_id)

    def _load(self) -> None:
        if not self._folder.is_dir():
            return
        for folder in sorted(self._folder.iterdir()):
            try:
                job = JobInfo.model_validate_json((folder / _RECORD).read_bytes())
            except (OSError, ValidationError):
                shutil.rmtree(folder, ignore_errors=True)  # an upload that was interrupted
                continue
            if not job.state.ended:
                job = JobInfo(id=job.id, created=job.created, total=job.total)
                self._waiting.put(job.id)
            self._jobs[job.id] = job

    def _run(self) -> None:
        while (job_id := self._waiting.get()) is not None and not self._closing.is_set():
            with self._lock:
                job = self._jobs.get(job_id)
                if job is None or job.state.ended:  # cancelled while waiting
                    continue
                job.state = JobState.RUNNING
            try:
                self._work(job, self._folder / job_id, lambda: self._closing.is_set() or job_id in self._cancelled)
            except Exception as error:
                job.error = str(error) if isinstance(error, Fc7Error) else _INTERNAL_ERROR
                self._on_error(job_id, error)
                self._end(job, JobState.FAILED)
            else:
                if job_id in self._cancelled:
                    self._end(job, JobState.CANCELLED)
                elif not self._closing.is_set() or job.seen == job.total:
                    self._end(job, JobState.DONE)

    def _end(self, job: JobInfo, state: JobState) -> None:
        ended = datetime.now(UTC)
        with contextlib.suppress(OSError):  # if the disk is full, the next process runs the job again
            self._save(job.model_copy(update={"state": state, "ended": ended}))
            (self._folder / job.id / ARCHIVE).unlink(missing_ok=True)
        with self._lock:
            job.state, job.ended = state, ended
            expired = sorted(each.id for each in self._jobs.values() if each.state.ended)[:-_KEPT_RECORDS]
            for job_id in expired:
                del self._jobs[job_id]
        for job_id in expired:
            shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def _save(self, job: JobInfo) -> None:
        write_atomic(self._folder / job.id / _RECORD, job.model_dump_json(indent=2).encode())
