"""Take over the jobs of the former format: a folder for each job, with `job.json` and, until it ended, `archive`.

Guarantees: an accepted job is in the table before its folder is removed. A folder whose record cannot be read is kept.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from index.records import now
from model_store.image_files import SkipKind, Skipped
from service.indexing.job import ARCHIVE, JobState
from service.indexing.job_files import FOLDERS
from service.indexing.job_store import JobStore, StoredJob

_RECORD = "job.json"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Entry(BaseModel):
    name: str
    reason: str


class _Record(BaseModel):
    state: JobState
    created: datetime
    ended: datetime | None = None
    total: int
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    skipped_images: list[_Entry] = []
    error: str | None = None


def import_former_jobs(store: JobStore) -> list[str]:
    """Move the jobs of the former format into the table; return a note for each folder that cannot be read.

    Raises OSError, IndexFullError.
    """
    notes = []
    for folder in sorted(each for each in store.folder.iterdir() if each.is_dir()):
        if folder.name in FOLDERS:
            continue
        try:
            record = _Record.model_validate_json((folder / _RECORD).read_bytes())
        except FileNotFoundError:
            if {each.name for each in folder.iterdir()} <= {ARCHIVE}:
                shutil.rmtree(folder)  # an upload that was never accepted
            continue
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a job record that this fc7 knows"
            notes.append(f"The import job in {folder} is kept, but cannot be read: {reason}.")
            continue
        _import(store, folder, record)
    return notes


def _import(store: JobStore, folder: Path, record: _Record) -> None:
    archive, target = folder / ARCHIVE, store.files.archive(folder.name)
    job = StoredJob(folder.name, record.state, _microseconds(record.created) or now())
    skipped: list[Skipped] = []
    if record.state.ended:
        job.ended = _microseconds(record.ended)
        job.added, job.replaced, job.unchanged = record.added, record.replaced, record.unchanged
        job.skipped, job.error, job.total = record.skipped, record.error, record.total
        job.kinds = {SkipKind.BROKEN_IMAGE.value: record.skipped} if record.skipped else {}
        skipped = [Skipped(entry.name, entry.reason) for entry in record.skipped_images]
    else:  # it starts again: the former format did not record how far it was
        job.state, job.total = JobState.WAITING, record.total
        if archive.exists():
            target.parent.mkdir(exist_ok=True)
            archive.rename(target)
        job.archive_bytes = target.stat().st_size if target.exists() else 0
    store.insert(job, skipped)
    shutil.rmtree(folder)


def _microseconds(time: datetime | None) -> int | None:
    return None if time is None else int((time - _EPOCH).total_seconds() * 1_000_000)
