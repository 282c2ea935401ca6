"""Background jobs that outlive their request: run one after the other, observed, cancelled and retried.

    waiting --> running --> done
       ^  \\        |  \\----> failed     an error of the input, or a defect of fc7; `retry` makes it wait again
       |   \\       |   \\---> cancelled  a job can be cancelled while it waits or runs
       +------------+      an error of the environment (disk, Milvus, model): tried again after a growing pause

Guarantees: an accepted job is kept until it is done, failed or cancelled, also if the process is killed. Each entry of
its archive is counted once. An error ends or delays one job, never the thread that runs them. The archive of a job that
is done or cancelled is removed, and that of a failed one is kept until it is deleted, unless it is damaged itself. At
most `_MAX_JOBS` archives are on disk, and the records of the last `_KEPT_RECORDS` ended jobs and the last
`_KEPT_RESULTS` result files are kept.
Out of scope: what a job does (`service.indexing.work`); running two jobs at the same time.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.errors import DamagedArchiveError, ImageArchiveError
from index.records import now
from model_store.errors import Fc7Error, TableError
from model_store.image_files import Skipped
from service.errors import ParameterError, QueueFullError
from service.indexing.errors import JobResultError, JobStateError, JobStoreError
from service.indexing.former_jobs import import_former_jobs
from service.indexing.job import JobInfo, JobKind, JobState, SkippedEntry
from service.indexing.job_status import Hold, describe
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import Work

_INTERNAL_ERROR = "Internal error. The log of the server has the details."
_KEPT_RECORDS = 100
_KEPT_RESULTS = 16
_MAX_JOBS = 16
_MAX_LISTED = 100
_MAX_PAUSE_S = 60.0
_FREE_INTERRUPTIONS = 3  # a job may have ended the process only by chance
_PERMANENT = (ImageArchiveError, DamagedArchiveError, TableError, FileNotFoundError, ParameterError)

# Named because inside the class below `list` is a method.
SkippedEntries = list[SkippedEntry]
Notes = list[str]


class Jobs:
    """The jobs of a home, and the thread that runs them. Thread-safe."""

    def __init__(self, folder: Path, works: Mapping[JobKind, Work], log: Any) -> None:
        """Continue the jobs that an earlier process left unfinished. works: the kinds that can be run."""
        self._folder, self._works, self._log = folder, works, log
        self._lock = threading.RLock()
        self._held: dict[str, Hold] = {}
        self._cancelled: set[str] = set()
        self._current: str | None = None
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._notes: list[str] = []
        self._restarts = -1
        self._store: JobStore | None = None
        self._trouble: JobStoreError | None = None
        self._open()
        self._thread = self._start()

    def close(self, timeout_s: float | None = None) -> None:
        """Stop after the current batch of images, and wait for that. The next process continues the jobs."""
        self._closing.set()
        self._woken.set()
        self._thread.join(timeout_s)
        if self._store is not None and not self._thread.is_alive():
            self._store.close()

    # --- requests ---------------------------------------------------------------------------------------------------

    def takes_archive(self, kind: JobKind) -> bool:
        """Return whether a job of this kind has an archive. Raises ParameterError if no such job can be run."""
        if kind not in self._works:
            raise ParameterError("kind", kind, f"one of {', '.join(self._works)}")
        return self._works[kind].takes_archive

    def check(self, kind: JobKind, parameters: Mapping[str, Any]) -> None:
        """Raise ParameterError, QueueFullError, JobStoreError, or an error of the kind, if a job cannot be accepted."""
        self.check_capacity()
        self._works[kind].check(parameters)

    def new_folder(self) -> Path:
        """Create the folder of an upload. Raises IndexFullError, IndexReadOnlyError, JobStoreError."""
        return self._opened.files.new_upload(_new_id())

    def check_capacity(self) -> None:
        """Raise QueueFullError if too many jobs wait or keep their archive, JobStoreError."""
        jobs = [job for job in self._opened.select() if job.archive_bytes or not job.state.ended]
        if len(jobs) >= _MAX_JOBS:
            failed = sum(job.state.ended for job in jobs)
            kept = f" ({failed} failed ones keep their archive until DELETE /v1/jobs/ID)" if failed else ""
            raise QueueFullError(f"jobs{kept}", _MAX_JOBS, 60)

    def accept_archive(self, kind: JobKind, parameters: Mapping[str, Any], folder: Path, total: int) -> JobInfo:
        """Queue the upload in `folder`. parameters: were checked. total: its entries.

        Raises QueueFullError, IndexFullError, IndexReadOnlyError, JobStoreError.
        """
        self.check_capacity()
        store, job = self._opened, folder.name
        # In this order: a process that is killed in between finds the archive, and runs it.
        size = store.files.keep_upload(job, kind, parameters)
        try:
            return self._insert(store, job, kind, parameters, archive_bytes=size, total=total)
        except BaseException:
            store.files.discard_archive(job)
            raise

    def accept(self, kind: JobKind, parameters: Mapping[str, Any]) -> JobInfo:
        """Queue a job without an archive. Raises as `accept_archive` does, and as `check` does."""
        self.check(kind, parameters)
        return self._insert(self._opened, _new_id(), kind, parameters)

    def _insert(
        self,
        store: JobStore,
        job: str,
        kind: JobKind,
        parameters: Mapping[str, Any],
        *,
        archive_bytes: int = 0,
        total: int | None = None,
    ) -> JobInfo:
        store.insert(
            StoredJob(
                job,
                JobState.WAITING,
                now(),
                archive_bytes=archive_bytes,
                total=total,
                kind=kind,
                parameters=dict(parameters),
            )
        )
        self._ensure_thread()
        self._woken.set()
        return self.get(job)

    def list(self) -> list[JobInfo]:
        """Return all jobs, newest first. Raises JobStoreError."""
        skipped = self._opened.first_skipped(_MAX_LISTED)
        return [self._describe(job, skipped.get(job.id, [])) for job in reversed(self._opened.select())]

    def counts(self) -> Counter[tuple[JobKind, JobState]]:
        """Return the number of jobs of each kind in each state. Raises JobStoreError."""
        return Counter((job.kind, job.state) for job in self._opened.select())

    def get(self, job_id: str) -> JobInfo:
        """Return the current state of a job. Raises JobNotFoundError, JobStoreError."""
        job = self._opened.get(job_id)
        return self._describe(job, self._opened.first_skipped(_MAX_LISTED, job_id).get(job_id, []))

    def result_file(self, job_id: str) -> Path:
        """Return the result file of a job. Raises JobNotFoundError, JobResultError, JobStoreError."""
        job = self._opened.get(job_id)
        if job.result_file is None:
            raise JobResultError(job_id, job.state, has_result=job.result is not None)
        return self._opened.files.result_folder(job_id) / job.result_file

    def skipped(self, job_id: str, after: int, limit: int) -> tuple[SkippedEntries, int | None]:
        """Return up to `limit` skipped entries after the number `after`, and the number to continue after, or None.

        Raises JobNotFoundError, JobStoreError.
        """
        self._opened.get(job_id)
        rows = self._opened.skipped(job_id, after, limit + 1)
        return [SkippedEntry.of(item) for _, item in rows[:limit]], rows[limit - 1][0] if len(rows) > limit else None

    def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job, or delete the files of one that has ended: its result file, and the archive of a failed one.

        Raises JobNotFoundError, JobStoreError.
        """
        store = self._opened
        with self._lock:
            job = store.get(job_id)
            if job_id == self._current:
                self._cancelled.add(job_id)
            else:
                if not job.state.ended:
                    store.move(job_id, job.state, to=JobState.CANCELLED, keep=False)
                store.discard_files(job_id)
                self._held.pop(job_id, None)
        return self.get(job_id)

    def retry(self, job_id: str) -> JobInfo:
        """Continue a failed job where it stopped. Raises JobNotFoundError, JobStateError, JobStoreError."""
        store = self._opened
        with self._lock:
            job = store.get(job_id)
            lost = self._works[job.kind].takes_archive and not job.archive_bytes
            if lost or not store.move(job_id, JobState.FAILED, to=JobState.WAITING):
                raise JobStateError(job_id, job.state)
        self._woken.set()
        return self.get(job_id)

    def notes(self) -> Notes:
        """Return what an operator should know: jobs that wait for something, and trouble of the jobs themselves.

        Starts the thread again if it has died. Never blocks.
        """
        self._ensure_thread()
        notes = [*([str(self._trouble)] if self._trouble else []), *self._notes]
        if self._restarts:
            notes.append(f"The thread that runs jobs died and was started again ({self._restarts} times).")
        held = list(self._held.items())[:_MAX_JOBS]
        return notes + [
            f"Job {job} waits: {hold.reason} Next try: {hold.next_try:%Y-%m-%d %H:%M:%S} UTC." for job, hold in held
        ]

    @property
    def _opened(self) -> JobStore:
        if self._store is None:
            raise self._trouble or JobStoreError(self._folder, "they are being opened")
        return self._store

    def _describe(self, job: StoredJob, skipped: Sequence[Skipped]) -> JobInfo:
        return describe(job, skipped, self._held.get(job.id), running=job.id == self._current)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _start(self) -> threading.Thread:
        self._restarts += 1
        thread = threading.Thread(target=self._run, name="fc7-jobs", daemon=True)
        thread.start()
        return thread

    def _ensure_thread(self) -> None:
        with self._lock:
            if not self._thread.is_alive() and not self._closing.is_set():
                self._current = None
                self._thread = self._start()

    def _run(self) -> None:
        pause_s = 1.0
        while not self._closing.is_set():
            try:
                self._woken.clear()
                if self._store is None or not self._run_next(self._store):
                    self._woken.wait(self._seconds_to_next_try())
                if self._store is None and not self._closing.is_set():
                    self._open()
                pause_s = 1.0
            except BaseException as error:  # whatever happens, the next job must run
                self._log.error("jobs interrupted", detail=str(error), exc_info=error)
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _seconds_to_next_try(self) -> float:
        untils = [hold.until - time.monotonic() for hold in list(self._held.values())]
        return max(0.05, min([_MAX_PAUSE_S, *untils]))

    def _open(self) -> None:
        """Open the table, and put what earlier processes left in order."""
        store = None
        try:
            store = JobStore(self._folder)
            self._notes = import_former_jobs(store)
            self._recover(store)
        except (Fc7Error, OSError) as error:
            if store is not None:
                store.close()
            known = isinstance(error, JobStoreError)
            self._trouble = error if known else JobStoreError(self._folder, str(error).rstrip("."))  # type: ignore[assignment]
            self._log.error("jobs unavailable", detail=str(error))
        else:
            self._store, self._trouble = store, None

    def _recover(self, store: JobStore) -> None:
        store.remove_unneeded_files()
        store.insert_unknown_archives()
        for job in store.select(JobState.RUNNING):
            interruptions = job.interruptions + 1
            store.update(job.id, state=JobState.WAITING, interruptions=interruptions)
            if interruptions > _FREE_INTERRUPTIONS:
                pause_s = min(2.0 ** (interruptions - _FREE_INTERRUPTIONS), 3600)
                reason = f"The server ended {interruptions} times while it worked on the same images of this job."
                self._held[job.id] = Hold.of(reason, 0, pause_s)

    def _run_next(self, store: JobStore) -> bool:
        """Run the oldest job that may run now; return False if there is none."""
        with self._lock:
            # A job is `running` without being the current one if a full disk prevented its change to `waiting`.
            jobs = store.select(JobState.WAITING, JobState.RUNNING)
            ready = [j for j in jobs if j.id not in self._held or self._held[j.id].until <= time.monotonic()]
            if not ready:
                return False
            job = ready[0]
            self._current = job.id
        try:
            store.move(job.id, JobState.WAITING, to=JobState.RUNNING)
            self._do(store, job)
        except BaseException as error:
            self._hold(store, job, error)
        finally:
            with self._lock:
                self._current = None
                self._cancelled.discard(job.id)
        return True

    def _do(self, store: JobStore, job: StoredJob) -> None:
        before = job.seen, job.position
        try:
            finished = self._works[job.kind].run(
                job, store, lambda: self._closing.is_set() or job.id in self._cancelled
            )
        except (Fc7Error, OSError, MemoryError, CancelledError) as error:
            if isinstance(error, (*_PERMANENT, *self._works[job.kind].permanent)):
                self._fail(store, job, error)
                return
            if (job.seen, job.position) != before:
                self._held.pop(job.id, None)
            raise
        except BaseException as error:
            if self._closing.is_set():
                raise  # the pools of the process are closed: the next process continues
            self._fail(store, job, error)
            return
        self._held.pop(job.id, None)
        if job.id in self._cancelled:
            self._end(store, job, JobState.CANCELLED)
        elif finished:
            self._end(store, job, JobState.DONE)
        else:
            store.move(job.id, JobState.RUNNING, to=JobState.WAITING)

    def _hold(self, store: JobStore, job: StoredJob, error: BaseException) -> None:
        """Let the job wait, and try again after a pause."""
        former = self._held.get(job.id)
        tries = 1 if former is None else former.tries + 1
        reason = str(error) or type(error).__name__
        if tries == 1:
            self._log.warning("job waiting", job=job.id, detail=reason)
        self._held[job.id] = Hold.of(reason, tries, min(2.0 ** (tries - 1), _MAX_PAUSE_S))
        if job.id in self._cancelled:
            self._end(store, job, JobState.CANCELLED)
        else:
            store.move(job.id, JobState.RUNNING, to=JobState.WAITING)

    def _fail(self, store: JobStore, job: StoredJob, error: BaseException) -> None:
        known = str(error) if isinstance(error, Fc7Error) else _INTERNAL_ERROR
        missing = isinstance(error, FileNotFoundError) and not store.files.archive(job.id).exists()
        text = "The archive is missing on the disk." if missing and job.archive_bytes else known
        if isinstance(error, DamagedArchiveError) and job.kind is JobKind.ARCHIVE:
            text += f" Before it, {job.added + job.replaced + job.unchanged:,} images were added or found unchanged."
        cause = None if isinstance(error, Fc7Error) else error
        self._log.error("job failed", job=job.id, detail=text, exc_info=cause)
        self._held.pop(job.id, None)
        self._end(store, job, JobState.FAILED, text, keep=not isinstance(error, DamagedArchiveError))

    def _end(
        self, store: JobStore, job: StoredJob, state: JobState, error: str | None = None, *, keep: bool = False
    ) -> None:
        if job.result is not None:
            store.save_result(job)
        with self._lock:  # `cancel` and `retry` see the job either as the current one, or as ended
            store.move(job.id, JobState.WAITING, JobState.RUNNING, to=state, error=error, keep=keep)
            self._held.pop(job.id, None)
            self._current = None
        if not keep:
            store.files.discard_archive(job.id)
            if job.result_file is None:
                store.files.discard_results([job.id])
        store.forget(_KEPT_RECORDS, _KEPT_RESULTS)


def _new_id() -> str:
    """Return an id. Ids are in the order of time."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f-") + secrets.token_hex(4)
