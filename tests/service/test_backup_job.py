"""The job of a backup: stopped, interrupted and repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.backup import FOLDER, list_backups, verify_backup
from service.backup_job import BackupJob
from service.indexing.job import JobKind, JobState
from service.indexing.job_store import JobStore, StoredJob
from tests.support.pictures import jpeg
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    publish_tiny_model(folder)
    with thread_server(folder) as server:
        server.client.put("/v1/images/one", content=jpeg(1)).raise_for_status()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with closing(JobStore(tmp_path / "jobs")) as opened:
        yield opened


def inserted(store: JobStore, name: str = "a-job") -> StoredJob:
    job = StoredJob(name, JobState.RUNNING, 0, kind=JobKind.BACKUP)
    store.insert(job)
    return job


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_stopped_backup_leaves_nothing(home: Path, store: JobStore, calls: int) -> None:
    """calls: how often the copy sees that it may continue. The first reports come from SQLite's own copy."""
    answers = iter([False] * calls)
    assert not BackupJob(home, with_index=True).run(inserted(store), store, lambda: next(answers, True))
    assert list((home / FOLDER).iterdir()) == []


def test_an_interrupted_backup_is_repeated_and_its_files_are_removed(home: Path, store: JobStore) -> None:
    job, folder = inserted(store), home / FOLDER
    (folder / ".a-job.0123abcd" / "home").mkdir(parents=True)
    (folder / ".another.0123abcd").mkdir()
    job.total = job.processed = 99_999_999
    assert BackupJob(home, with_index=True).run(job, store, lambda: False)
    assert sorted(path.name for path in folder.iterdir()) == [".another.0123abcd", "a-job"]
    assert verify_backup(folder / "a-job").images == 1
    assert job.processed == job.total < 99_999_999


def test_a_complete_backup_is_not_taken_again(home: Path, store: JobStore) -> None:
    job, work = inserted(store), BackupJob(home, with_index=True)
    assert work.run(job, store, lambda: False)
    [(path, first)] = list_backups(home / FOLDER)
    publish_tiny_model(home, seed=2)
    assert work.run(job, store, lambda: False)
    assert list_backups(home / FOLDER) == [(path, first)]


def test_an_index_elsewhere_is_not_copied(home: Path, store: JobStore) -> None:
    job = inserted(store)
    assert BackupJob(home, with_index=False).run(job, store, lambda: False)
    assert job.result is not None
    assert (job.result["images"], job.result["versions"]) == (None, ["tiny:1"])
