"""Work that outlives its request: kept on disk, done one after the other in the background, followed and cancelled.

Promises: a job that was accepted is there after a restart; one that was cut off by it is begun anew, which is the same
as going on, because what it had added is passed by; a cancelled one stops after the images in hand; what a finished job
leaves is its record. Records of the last `_KEPT` finished jobs are kept.
Does not: know what a job does (`Work` does), or run two at a time.

On disk, a job is a folder: `job.json`, and `archive` until it has ended. One without `job.json` was never accepted.
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
_KEPT = 100
_MOST_WAITING = 16
_MOST_SKIPPED = 100


class JobState(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (JobState.WAITING, JobState.RUNNING)


class Skipped(BaseModel):
    """An image that was not added, and why."""

    name: str
    reason: str


class JobInfo(BaseModel):
    """A job. seen = added + replaced + unchanged + skipped; `total` is known from the start; times in UTC.

    `skipped_images` lists the first hundred; `error` says why a job failed.
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
        """Count an image that was not added."""
        self.skipped += 1
        self.seen += 1
        if len(self.skipped_images) < _MOST_SKIPPED:
            self.skipped_images.append(Skipped(name=name, reason=reason))


# Does the job with this record and folder until it ends or `stopped()`; it counts in the record.
Work = Callable[[JobInfo, Path, Callable[[], bool]], None]


class Jobs:
    """The jobs of a home, and the thread that does them."""

    def __init__(self, folder: Path, work: Work, failed: Callable[[str, BaseException], None]) -> None:
        """Begin what an earlier process left. failed: hears of a job (its id) that ended with an error."""
        self._folder, self._work, self._failed = folder, work, failed
        self._lock = threading.Lock()
        self._jobs: dict[str, JobInfo] = {}
        self._cancelled: set[str] = set()
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._load()
        self._thread = threading.Thread(target=self._serve, name="fc7-jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the images in hand; the next process goes on."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    def new_folder(self) -> Path:
        """Return a folder for a job that is yet to be accepted. Raises IndexFullError, IndexReadOnlyError."""
        folder = self._folder / (datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f-") + secrets.token_hex(4))
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise translate_os_error(error, self._folder) from error
        return folder

    def check_room(self) -> None:
        """Raise QueueFullError when too many jobs wait."""
        with self._lock:
            if sum(not job.state.ended for job in self._jobs.values()) >= _MOST_WAITING:
                raise QueueFullError("jobs", _MOST_WAITING, 60)

    def accept(self, folder: Path, total: int) -> JobInfo:
        """Take the job in `folder`, of `total` images. Raises QueueFullError, IndexFullError, IndexReadOnlyError."""
        self.check_room()
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
        """Return a job as it is now. Raises JobNotFoundError."""
        with self._lock:
            if job_id not in self._jobs:
                raise JobNotFoundError(job_id)
            return self._jobs[job_id].model_copy(deep=True)

    def cancel(self, job_id: str) -> JobInfo:
        """Have a job end; one that has ended stays as it is. Raises JobNotFoundError."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                raise JobNotFoundError(job_id)
            if job.state.ended:
                return job.model_copy(deep=True)
            self._cancelled.add(job_id)
            if job.state is JobState.RUNNING:
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
                shutil.rmtree(folder, ignore_errors=True)  # an upload that was cut off
                continue
            self._jobs[job.id] = job
            if not job.state.ended:
                fresh = JobInfo(id=job.id, created=job.created, total=job.total)
                self._jobs[job.id] = fresh
                self._waiting.put(job.id)

    def _serve(self) -> None:
        while (job_id := self._waiting.get()) is not None and not self._closing.is_set():
            with self._lock:
                job = self._jobs.get(job_id)
                if job is None or job.state.ended:  # cancelled while it waited
                    continue
                job.state = JobState.RUNNING
            try:
                self._work(job, self._folder / job_id, lambda: self._closing.is_set() or job_id in self._cancelled)
            except Exception as error:
                job.error = str(error) if isinstance(error, Fc7Error) else "an error inside the server; see its log"
                self._failed(job_id, error)
                self._end(job, JobState.FAILED)
            else:
                if job_id in self._cancelled:
                    self._end(job, JobState.CANCELLED)
                elif not self._closing.is_set() or job.seen == job.total:
                    self._end(job, JobState.DONE)

    def _end(self, job: JobInfo, state: JobState) -> None:
        ended = datetime.now(UTC)
        with contextlib.suppress(OSError):  # without room for it, the next process does the job again
            self._save(job.model_copy(update={"state": state, "ended": ended}))
            (self._folder / job.id / ARCHIVE).unlink(missing_ok=True)
        with self._lock:
            job.state, job.ended = state, ended
            over = sorted(each.id for each in self._jobs.values() if each.state.ended)[:-_KEPT]
            for job_id in over:
                del self._jobs[job_id]
        for job_id in over:
            shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def _save(self, job: JobInfo) -> None:
        write_atomic(self._folder / job.id / _RECORD, job.model_dump_json(indent=2).encode())
