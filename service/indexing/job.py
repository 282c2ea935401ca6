"""Jobs as the HTTP API shows them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from model_store.image_files import SkipKind, Skipped

ARCHIVE = "archive"
"""The file name of an archive in the folder of its job."""


class JobKind(StrEnum):
    """What a job does.

    archive: adds the images of an archive to the index. classify: writes the predictions for the images of an archive
    to a file. head: fits the last layer of a model to labeled images. map: computes the map of the index. backup:
    takes a backup.
    """

    ARCHIVE = "archive"
    CLASSIFY = "classify"
    HEAD = "head"
    MAP = "map"
    BACKUP = "backup"


class JobState(StrEnum):
    """The state of a job. A waiting job is queued, or an error stopped it and it is tried again (`waiting_for`)."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job is done, has failed or was cancelled."""
        return self not in (JobState.WAITING, JobState.RUNNING)


class SkippedEntry(BaseModel):
    """An entry of the archive that could not be used, and the reason. kind: the category of the reason."""

    name: str
    reason: str
    kind: SkipKind

    @classmethod
    def of(cls, item: Skipped) -> SkippedEntry:
        """Return the entry of a report."""
        return cls(name=item.path, reason=item.reason, kind=item.kind)


class JobInfo(BaseModel):
    """A job and its progress. seen = added + replaced + unchanged + processed + skipped; times are in UTC.

    Counts continue after a restart: each entry of an archive is counted once. added, replaced, unchanged: images of a
    job of the kind archive; processed: what a job of another kind has done (bytes of a backup).
    total: what there is to be seen; ignored: hidden and system files, which are not among them. skipped_by_reason: the
    number of skipped entries by kind; skipped_images: the first 100 of them. error: why the job failed; what was done
    before stays. waiting_for: the error that a waiting job waits out; next_try: when it is tried again. archive_bytes:
    disk space of its archive. result: what the job found, null until it is done; result_bytes: size of the file at
    /v1/jobs/{id}/result, 0 if there is none.
    """

    id: str
    kind: JobKind
    state: JobState
    parameters: dict[str, Any] = Field(default_factory=dict)
    created: datetime
    ended: datetime | None = None
    total: int
    seen: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    processed: int = 0
    skipped: int = 0
    skipped_by_reason: dict[str, int] = Field(default_factory=dict)
    skipped_images: list[SkippedEntry] = Field(default_factory=list)
    ignored: int = 0
    archive_bytes: int = 0
    result: dict[str, Any] | None = None
    result_bytes: int = 0
    waiting_for: str | None = None
    next_try: datetime | None = None
    error: str | None = None


class JobsAnswer(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobInfo]


class SkippedAnswer(BaseModel):
    """Skipped entries of a job, in the order of the archive. next_cursor: null on the last page."""

    skipped: list[SkippedEntry]
    next_cursor: int | None
