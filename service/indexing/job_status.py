"""Describe a stored job, and why it waits, as the HTTP API shows it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from model_store.image_files import Skipped
from service.indexing.job import JobInfo, JobState, SkippedEntry
from service.indexing.job_store import StoredJob

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a job waits, how often it was tried, and when it is tried again (monotonic, and for users)."""

    reason: str
    tries: int
    until: float
    next_try: datetime

    @classmethod
    def of(cls, reason: str, tries: int, pause_s: float) -> Hold:
        """Return a hold that ends in `pause_s` seconds."""
        return cls(reason, tries, time.monotonic() + pause_s, datetime.now(UTC) + timedelta(seconds=pause_s))


def describe(job: StoredJob, skipped: Sequence[Skipped], hold: Hold | None, *, running: bool) -> JobInfo:
    """Return a job with its first skipped entries. running: it is the job that runs now."""
    running = running and job.state is JobState.RUNNING
    if job.state.ended or running:
        hold = None
    return JobInfo(
        id=job.id,
        kind=job.kind,
        state=job.state if job.state.ended or running else JobState.WAITING,
        parameters=job.parameters,
        created=_EPOCH + timedelta(microseconds=job.created),
        ended=None if job.ended is None else _EPOCH + timedelta(microseconds=job.ended),
        total=job.total or 0,
        seen=job.seen,
        added=job.added,
        replaced=job.replaced,
        unchanged=job.unchanged,
        processed=job.processed,
        skipped=job.skipped,
        skipped_by_reason=job.kinds,
        skipped_images=[SkippedEntry.of(item) for item in skipped],
        ignored=job.ignored,
        archive_bytes=job.archive_bytes,
        result=job.result,
        result_bytes=job.result_bytes,
        waiting_for=hold.reason if hold else None,
        next_try=hold.next_try if hold else None,
        error=job.error,
    )
