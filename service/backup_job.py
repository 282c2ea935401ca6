"""Take a backup, as a background job.

Guarantees: the backup has the name of its job, so that a job that was interrupted replaces what it left, and one that
was interrupted after its backup was complete does not take it again.
Out of scope: what a backup contains (service/backup.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from model_store.errors import ArtifactError
from service import backup
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import JobParameters, Work

_STEPS = 100  # the progress is stored so often


class BackupParameters(JobParameters):
    """Parameters of the kind backup. keep: number of backups to keep; all of them for None."""

    keep: int | None = Field(None, ge=1)


class BackupJob(Work):
    """Takes a backup of `home`. with_index: whether the index is in the home, and not on Milvus."""

    parameters = BackupParameters
    permanent = (ArtifactError,)

    def __init__(self, home: Path, *, with_index: bool) -> None:
        self._home, self._with_index = home, with_index

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        """Take the backup; False if `stopped()` was true. Raises BackupError, ArtifactError, errors of the index."""
        chosen = BackupParameters.model_validate(job.parameters)
        folder = self._home / backup.FOLDER
        target = folder / job.id
        if not target.exists():
            for leftover in folder.glob(f".{job.id}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                progress = _Progress(job, store, stopped)
                backup.create_backup(self._home, target, with_index=self._with_index, advance=progress.advance)
            except BaseException:
                if stopped():  # the copy may have raised another error because of the stop
                    return False
                raise
        deleted = [] if chosen.keep is None else backup.remove_oldest(folder, chosen.keep)
        job.result = _result(target, deleted)
        return True


class _StoppedError(Exception):
    """Ends a copy."""


class _Progress:
    """Stores the progress of a copy in its job: bytes done, of those in the steps so far."""

    def __init__(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> None:
        self._job, self._store, self._stopped = job, store, stopped
        self._step = ""
        self._before = self._total = self._stored = 0

    def advance(self, step: str, done: int, total: int) -> None:
        """Store the progress. Raises _StoppedError if the job must end."""
        if self._stopped():
            raise _StoppedError
        if step != self._step:
            self._step, self._before = step, self._total
        self._total = self._before + total
        self._job.processed, self._job.total = self._before + done, self._total
        if done >= total or self._job.processed - self._stored >= total / _STEPS:
            self._stored = self._job.processed
            self._store.save_progress(self._job, [])


def _result(target: Path, deleted: list[Path]) -> dict[str, Any]:
    manifest = backup.read_backup(target)
    facts = manifest.model_dump(mode="json", include={"versions", "active", "images"})
    return {"name": target.name, **facts, "size": manifest.size, "deleted": [path.name for path in deleted]}
