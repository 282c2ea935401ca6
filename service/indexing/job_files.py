"""The files of jobs, in folders beside their table.

    uploads/ID/archive           an upload that is not accepted yet; removed at the next start
    archives/ID/archive          the archive of an accepted job
    archives/ID/request.json     the kind and the parameters of the job, in case the table is lost
    results/ID/                  the result file of a job, while it is written and afterwards

Guarantees: an archive is in `archives` as a whole, or not at all.
Out of scope: which files are needed (`service.indexing.job_store`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from index.errors import translate_os_error
from model_store.durable import sync, write_atomic
from service.indexing.job import ARCHIVE, JobKind

FOLDERS: Final = ("uploads", "archives", "results")
_REQUEST: Final = "request.json"


class JobFiles:
    """The folders of one home."""

    def __init__(self, folder: Path) -> None:
        """Create the folders if they are missing. Raises OSError."""
        self._uploads, self._archives, self._results = (folder / name for name in FOLDERS)
        for each in (self._uploads, self._archives, self._results):
            each.mkdir(parents=True, exist_ok=True)

    def new_upload(self, job: str) -> Path:
        """Create the folder of an upload. Raises IndexFullError, IndexReadOnlyError."""
        return _create(self._uploads / job)

    def keep_upload(self, job: str, kind: JobKind, parameters: Mapping[str, Any]) -> int:
        """Move an upload to the archives of accepted jobs; return its size in bytes. Raises IndexFullError."""
        request = json.dumps({"kind": kind, "parameters": dict(parameters)})
        try:
            size = (self._uploads / job / ARCHIVE).stat().st_size
            write_atomic(self._uploads / job / _REQUEST, request.encode())
            (self._uploads / job).rename(self._archives / job)
            sync(self._archives)
        except OSError as error:
            raise translate_os_error(error, self._archives) from error
        return size

    def remove_uploads(self) -> None:
        """Remove the uploads that an earlier process did not accept."""
        for folder in self._uploads.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def archive(self, job: str) -> Path:
        """Return where the archive of an accepted job is."""
        return self._archives / job / ARCHIVE

    def request_of(self, job: str) -> tuple[JobKind, dict[str, Any]]:
        """Return the kind and the parameters of the job of an archive. Raises OSError."""
        file = self._archives / job / _REQUEST
        if not file.exists():
            return JobKind.ARCHIVE, {}  # accepted by an earlier fc7, which had no other kind
        stored = json.loads(file.read_bytes())
        return JobKind(stored["kind"]), stored["parameters"]

    def other_archives(self, known: Iterable[str]) -> list[str]:
        """Return the ids of archives that are not `known`, in order.

        Folders without an archive, which a process left that was killed, and files of others are not archives.
        """
        names = {each.name for each in self._archives.iterdir()} - set(known)
        return sorted(name for name in names if self.archive(name).is_file())

    def discard_archive(self, job: str) -> None:
        """Delete the archive of a job that has ended or was not accepted. If that fails, the next start tries again."""
        shutil.rmtree(self._archives / job, ignore_errors=True)

    def result_folder(self, job: str) -> Path:
        """Return the folder for the result file of a job, and create it. Raises IndexFullError, IndexReadOnlyError."""
        return _create(self._results / job)

    def discard_results(self, jobs: Iterable[str]) -> None:
        """Delete the result files of jobs, or what was written of them."""
        for job in jobs:
            shutil.rmtree(self._results / job, ignore_errors=True)

    def remove_other_results(self, needed: Iterable[str]) -> None:
        """Delete the result files of all jobs that are not `needed`."""
        self.discard_results({each.name for each in self._results.iterdir()} - set(needed))


def _create(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translate_os_error(error, folder.parent) from error
    return folder
