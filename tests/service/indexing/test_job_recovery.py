"""Accepted jobs are kept: through kills, restarts, errors of the environment and homes of other versions."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from index.errors import IndexUnreachableError
from service.indexing.errors import JobStateError, JobStoreError
from service.indexing.job_store import JobStore
from service.indexing.jobs import Jobs
from tests.index.bulk.archives import images, zipped
from tests.service.indexing.helpers import Step, accepted, ended, open_jobs, work_of
from tests.service.indexing.test_jobs import ZIP, finished
from tests.support.server import process_server, thread_server, wait_until


def failing(error: BaseException) -> Step:
    def step() -> None:
        raise error

    return step


def test_an_error_of_the_environment_lets_the_job_wait_and_the_next_one_run(tmp_path: Path) -> None:
    away = IndexUnreachableError("milvus", "connection refused")
    with closing(open_jobs(tmp_path, work_of(lambda: None, failing(away), lambda: None))) as jobs:
        job = accepted(jobs)
        wait_until(lambda: jobs.get(job).waiting_for is not None)
        shown = jobs.get(job)
        assert (shown.state, shown.added, shown.archive_bytes) == ("waiting", 1, 7)
        assert "connection refused" in (shown.waiting_for or "")
        assert shown.next_try is not None
        assert job in jobs.notes()[0]
        assert "connection refused" in jobs.notes()[0]
        ended(jobs, accepted(jobs))
        done = ended(jobs, job)
        assert (done.archive_bytes, done.waiting_for, jobs.notes()) == (0, None, [])


def test_a_waiting_job_can_be_cancelled(tmp_path: Path) -> None:
    away = IndexUnreachableError("milvus", "connection refused")
    with closing(open_jobs(tmp_path, work_of(*[failing(away)] * 20))) as jobs:
        job = accepted(jobs)
        wait_until(lambda: jobs.get(job).waiting_for is not None)
        assert jobs.cancel(job).state == "cancelled"
        wait_until(lambda: not list((tmp_path / "jobs" / "archives").iterdir()))


@pytest.mark.parametrize("error", [KeyError("defect"), SystemExit(3), KeyboardInterrupt()])
def test_a_defect_ends_one_job_and_keeps_its_archive_for_a_retry(tmp_path: Path, error: BaseException) -> None:
    with closing(open_jobs(tmp_path, work_of(lambda: None, failing(error)))) as jobs:
        job = accepted(jobs)
        failed = ended(jobs, job, "failed")
        assert (failed.added, failed.archive_bytes) == (1, 7)
        assert failed.error == "Internal error. The log of the server has the details."
        ended(jobs, accepted(jobs))
        assert jobs.retry(job).error is None
        assert ended(jobs, job).added == 1
        with pytest.raises(JobStateError, match="is done"):
            jobs.retry(job)


def test_the_archive_of_a_failed_job_can_be_deleted(tmp_path: Path) -> None:
    with closing(open_jobs(tmp_path, work_of(failing(KeyError("defect"))))) as jobs:
        job = accepted(jobs)
        ended(jobs, job, "failed")
        assert (jobs.cancel(job).state, jobs.get(job).archive_bytes) == ("failed", 0)
        wait_until(lambda: not list((tmp_path / "jobs" / "archives").iterdir()))


def test_a_thread_that_died_is_started_again_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Jobs, "_run", lambda _: None)
    jobs = open_jobs(tmp_path, work_of())
    job = accepted(jobs)
    monkeypatch.undo()
    with closing(jobs):
        assert "died and was started again" in jobs.notes()[0]
        ended(jobs, job)


def test_archives_of_a_lost_table_are_run_again(tmp_path: Path) -> None:
    with closing(open_jobs(tmp_path, work_of(*[failing(OSError("EIO"))] * 9))) as jobs:
        job = accepted(jobs)
    for file in (tmp_path / "jobs").glob("jobs.db*"):
        file.unlink()
    archives = tmp_path / "jobs/archives"
    (archives / "20260101-000000-000000-00000000").mkdir()  # a process was killed before it removed the folder
    (archives / ".DS_Store").touch()
    with closing(open_jobs(tmp_path, work_of())) as jobs:
        assert ended(jobs, job).archive_bytes == 0
        assert len(jobs.list()) == 1


@pytest.mark.parametrize("damage", ["newer", "corrupt", "locked"])
def test_a_table_that_cannot_be_opened_is_kept_and_everything_else_works(home: Path, damage: str) -> None:
    with closing(open_jobs(home, work_of(*[failing(OSError("EIO"))] * 9))) as jobs:
        job = accepted(jobs)
    table = home / "jobs" / "jobs.db"
    holder = None
    if damage == "newer":
        with closing(sqlite3.connect(table)) as database:
            database.execute("PRAGMA user_version = 99")
    elif damage == "corrupt":
        table.write_bytes(b"not a database, but something that is long enough to be one" * 40)
    else:
        holder = open_jobs(home, work_of(*[failing(OSError("EIO"))] * 9))
    content = table.read_bytes()
    with thread_server(home) as server:
        ready = server.client.get("/readyz")
        assert ready.status_code == 200
        assert "The jobs in" in ready.json()["notes"][0]
        for answer in (server.client.get("/v1/jobs"), server.client.post("/v1/jobs", content=b"PK", headers=ZIP)):
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:fc7:problem:jobs-unavailable")
        assert server.client.put("/v1/images/a", content=images(1)["birds/0.jpg"]).status_code == 201
    if holder is not None:
        holder.close()
    if damage == "newer":
        with closing(sqlite3.connect(table)) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (99,)
            assert database.execute("SELECT id FROM jobs").fetchall() == [(job,)]
    elif damage == "corrupt":
        assert table.read_bytes() == content
    assert (home / "jobs" / "archives" / job / "archive").exists()


def test_the_lock_is_free_after_closing(tmp_path: Path) -> None:
    JobStore(tmp_path).close()
    store = JobStore(tmp_path)
    with pytest.raises(JobStoreError, match="another process"):
        JobStore(tmp_path)
    store.close()


def test_jobs_of_the_former_format_are_taken_over(home: Path) -> None:
    def former(name: str, record: dict[str, object] | str | None, archive: bytes | None) -> Path:
        folder = home / "jobs" / name
        folder.mkdir(parents=True)
        if record is not None:
            (folder / "job.json").write_text(record if isinstance(record, str) else json.dumps(record))
        if archive is not None:
            (folder / "archive").write_bytes(archive)
        return folder

    common = {"created": "2026-11-01T10:00:00Z", "total": 20}
    done = {
        "ended": "2026-11-01T11:00:00Z",
        "added": 19,
        "skipped": 1,
        "skipped_images": [{"name": "x", "reason": "y."}],
    }
    data = zipped(images(20))
    former("1-waiting", common | {"id": "1-waiting", "state": "running", "seen": 3, "added": 3}, data)
    former("2-done", common | done | {"id": "2-done", "state": "done"}, None)
    never_accepted = former("3-upload", None, b"PK")
    newer = former("4-newer", common | {"id": "4-newer", "state": "paused"}, data)
    broken = former("5-broken", '{"id": "5-bro', data)
    with thread_server(home) as server:
        wait_until(lambda: server.client.get("/v1/jobs/1-waiting").json()["state"] == "done")
        assert server.client.get("/v1/index").json()["images"] == 20
        old = server.client.get("/v1/jobs/2-done").json()
        assert (old["state"], old["added"], old["created"][:16]) == ("done", 19, "2026-11-01T10:00")
        assert old["skipped_images"][0]["name"] == "x"
        notes = server.client.get("/readyz").json()["notes"]
        assert [any(folder.name in note for note in notes) for folder in (newer, broken)] == [True, True]
    assert not never_accepted.exists()
    assert not (home / "jobs" / "1-waiting").exists()
    assert (newer / "archive").read_bytes() == (broken / "archive").read_bytes() == data


def test_a_killed_server_continues_and_counts_each_image_once(home: Path) -> None:
    with process_server(home) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.post("/v1/jobs", content=zipped(images(300)), headers=ZIP)
        wait_until(lambda: client.get(answer.headers["location"]).json()["seen"] > 0)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with thread_server(home) as server_2:
        job = finished(server_2.client, answer)
        assert (job["state"], job["total"], job["seen"], job["added"]) == ("done", 300, 300, 300)
        assert server_2.client.get("/v1/index").json()["images"] == 300


def test_a_batch_that_was_committed_but_not_saved_counts_as_added(home: Path) -> None:
    files = images(12)
    data = zipped(files)
    with thread_server(home) as server:
        job = finished(server.client, server.client.post("/v1/jobs", content=data, headers=ZIP))
        assert job["added"] == 12
    # The state of the disk after a kill between the commit of the index and the commit of the job.
    batch = {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
    archive = home / "jobs" / "archives" / job["id"] / "archive"
    archive.parent.mkdir()
    archive.write_bytes(data)
    with closing(sqlite3.connect(home / "jobs" / "jobs.db")) as database, database:
        database.execute(
            "UPDATE jobs SET state = 'running', position = 0, added = 0, archive_bytes = 9, batch = ?",
            (json.dumps(batch),),
        )
    with thread_server(home) as server:
        wait_until(lambda: server.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done")
        again = server.client.get(f"/v1/jobs/{job['id']}").json()
        assert (again["added"], again["unchanged"], again["seen"]) == (12, 0, 12)


def test_a_full_disk_lets_the_job_wait_until_there_is_space(home: Path) -> None:
    with process_server(home) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        answer = client.post("/v1/jobs", content=zipped(images(100)), headers=ZIP)
        assert answer.status_code == 202, answer.text
        path = answer.headers["location"]
        wait_until(lambda: client.get(path).json()["waiting_for"] is not None)
        job = client.get(path).json()
        assert (job["state"], job["error"]) == ("waiting", None)
        assert "too full" in job["waiting_for"]
        assert "too full" in client.get("/readyz").json()["notes"][0]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        done = finished(client, answer)
        assert (done["state"], done["seen"], done["added"]) == ("done", 100, 100)
        assert client.get("/v1/index").json()["images"] == 100


def test_closing_does_not_wait_for_a_pause(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    jobs = open_jobs(tmp_path, work_of(*[failing(OSError("EIO"))] * 9))
    job = accepted(jobs)
    wait_until(lambda: jobs.get(job).waiting_for is not None)
    started = time.monotonic()
    jobs.close()
    assert time.monotonic() - started < 1
    assert "fc7-jobs" not in {thread.name for thread in set(threading.enumerate()) - before}
