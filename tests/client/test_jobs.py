"""Jobs: start one with an archive or without, wait for it across a restart, and get its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fc7_client import ConflictError, InvalidRequestError, JobError, JobTimeoutError, NotFoundError, Retry
from fc7_client.models import Job

from tests.client.helpers import OpenClient
from tests.index.bulk.archives import images, zipped
from tests.service.test_lifecycle import pausable_server
from tests.support import pictures
from tests.support.server import thread_server


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "photos.zip"
    path.write_bytes(zipped(images(5) | {"broken.jpg": b"no"}))
    return path


def test_an_archive_is_added_with_progress(client: Any, archive: Path) -> None:
    seen: list[Job] = []
    job = client.start_job("archive", archive)
    done = client.wait_for_job(job.id, progress=seen.append)
    assert (done.state, done.added, done.skipped, done.total) == ("done", 5, 1, 6)
    assert seen[-1] == done
    assert client.index().images == 5
    assert [entry.name for entry in client.skipped_entries(job.id, page_size=1)] == ["broken.jpg"]
    assert [each.id for each in client.list_jobs()] == [job.id]


def test_predictions_are_written_to_a_file(client: Any, archive: Path, tmp_path: Path) -> None:
    job = client.wait_for_job(client.start_job("classify", archive, {"format": "csv", "k": 2}).id)
    target = client.job_result(job.id, tmp_path / "answers.csv")
    assert len(target.read_text().splitlines()) == 1 + 6
    assert target.stat().st_size == job.result_bytes
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_job_without_an_archive_takes_options_and_says_why_it_failed(client: Any) -> None:
    client.put_image("one", pictures.jpeg(1), {"kind": "cat"})
    with pytest.raises(InvalidRequestError, match="nonsense"):
        client.start_job("head", options={"nonsense": 1})
    job = client.start_job("head", options={"field": "kind"})
    with pytest.raises(JobError, match="cat") as caught:
        client.wait_for_job(job.id)
    assert caught.value.job.state == "failed"
    assert client.retry_job(job.id).id == job.id


def test_a_job_is_waited_for_across_a_restart(home: Path, archive: Path, open_client: OpenClient) -> None:
    with pausable_server(home) as (server, runner):
        client = open_client(server.url, retry=Retry(total_s=20))
        runner.pause()
        job = client.start_job("archive", archive)
        with pytest.raises(JobTimeoutError, match="continues on the server") as caught:
            client.wait_for_job(job.id, timeout_s=0.2)
        assert caught.value.job.id == job.id
        runner.resume()
    with thread_server(home, port=server.port):
        assert client.wait_for_job(job.id).added == 5


def test_a_cancelled_job_raises(home: Path, archive: Path, open_client: OpenClient) -> None:
    with pausable_server(home) as (server, runner):
        client = open_client(server.url)
        runner.pause()
        first, second = client.start_job("archive", archive), client.start_job("archive", archive)
        assert client.cancel_job(second.id).state == "cancelled"
        with pytest.raises(JobError, match="cancelled") as caught:
            client.wait_for_job(second.id)
        assert caught.value.job.state == "cancelled"
        with pytest.raises(ConflictError):
            client.retry_job(second.id)
        runner.resume()
        client.wait_for_job(first.id)


def test_unknown_jobs_and_broken_archives_are_rejected(client: Any, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        client.get_job("missing")
    archive.write_bytes(b"no archive")
    with pytest.raises(InvalidRequestError):
        client.start_job("archive", archive)
    with pytest.raises(NotFoundError):
        client.job_result("missing", tmp_path / "answers.csv")
    assert not (tmp_path / "answers.csv").exists()
