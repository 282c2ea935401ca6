"""Jobs of several kinds: parameters, results, retry and cancel, and tables of earlier formats."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from index.errors import IndexUnreachableError
from model_store.errors import Fc7Error
from model_store.image_files import Skipped
from service.errors import ParameterError
from service.indexing.errors import JobResultError, JobStateError
from service.indexing.job import JobKind, JobState
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import JobParameters, Work
from service.state import State
from tests.index.bulk.archives import images, zipped
from tests.service.indexing.helpers import accepted, ended, open_jobs, work_of
from tests.service.indexing.test_jobs import ZIP, finished
from tests.support.server import ThreadServer, thread_server, wait_until

FORMER_TABLE = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, created INTEGER NOT NULL, ended INTEGER, archive_bytes INTEGER NOT NULL,
    total INTEGER, position INTEGER NOT NULL DEFAULT 0, added INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0, unchanged INTEGER NOT NULL DEFAULT 0, skipped INTEGER NOT NULL DEFAULT 0,
    ignored INTEGER NOT NULL DEFAULT 0, kinds TEXT NOT NULL DEFAULT '{}', batch TEXT,
    interruptions INTEGER NOT NULL DEFAULT 0, error TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE TABLE skipped (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL, path TEXT NOT NULL,
    kind TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, number)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


class Parameters(JobParameters):
    count: int = 3
    text: str | None = None


class Counting(Work):
    """Counts, writes a file, and fails with `errors` before."""

    parameters = Parameters
    permanent = (FloatingPointError,)

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    def check(self, parameters: object) -> None:
        super().check(parameters)  # type: ignore[arg-type]
        if parameters == {"count": 13}:
            raise ParameterError("count", 13, "a lucky number")

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        job.total = Parameters.model_validate(job.parameters).count
        for _ in range(job.total):
            if stopped():
                return False
            job.processed += 1
            store.save_progress(job, [])
        (store.files.result_folder(job.id) / "result.csv").write_text("a,b\n")
        job.result, job.result_file = {"counted": job.total}, "result.csv"
        return True


def result_folders(home: Path) -> list[str]:
    return sorted(each.name for each in (home / "jobs" / "results").iterdir())


def test_a_job_without_an_archive_has_parameters_and_a_result(tmp_path: Path) -> None:
    with closing(open_jobs(tmp_path, Counting(), kind=JobKind.HEAD)) as jobs:
        job = ended(jobs, jobs.accept(JobKind.HEAD, {"count": 2}).id)
        assert (job.kind, job.parameters, job.result) == ("head", {"count": 2}, {"counted": 2})
        assert (job.total, job.seen, job.processed, job.added, job.result_bytes) == (2, 2, 2, 0, 4)
        assert jobs.result_file(job.id).read_text() == "a,b\n"
        with pytest.raises(JobStateError, match="is done"):
            jobs.retry(job.id)
    with closing(open_jobs(tmp_path, Counting(), kind=JobKind.HEAD)) as jobs:
        assert jobs.list() == [job], "a restart keeps it"
        deleted = jobs.cancel(job.id)
        assert (deleted.state, deleted.ended, deleted.result) == ("done", job.ended, job.result)
        assert (deleted.result_bytes, result_folders(tmp_path)) == (0, [])
        with pytest.raises(JobResultError, match="was deleted"):
            jobs.result_file(job.id)


def test_parameters_are_checked_before_a_job_is_accepted(tmp_path: Path) -> None:
    with closing(open_jobs(tmp_path, Counting(), kind=JobKind.MAP)) as jobs:
        for parameters, message in (
            ({"count": "x"}, "count=x is not valid: expected a valid integer"),
            ({"number": 1}, "number=1 is not valid: expected one of the parameters count, text."),
            ({"count": 13}, "expected a lucky number"),
        ):
            with pytest.raises(ParameterError, match=message):
                jobs.accept(JobKind.MAP, parameters)
        with pytest.raises(ParameterError, match="kind=head is not valid: expected one of map"):
            jobs.takes_archive(JobKind.HEAD)
        assert jobs.list() == []


@pytest.mark.parametrize(("error", "text"), [(FloatingPointError("no"), "Internal"), (Fc7Error("No."), "No.")])
def test_a_permanent_error_fails_the_job_and_it_can_be_retried(tmp_path: Path, error: Exception, text: str) -> None:
    class Failing(Counting):
        permanent = (type(error),)

    with closing(open_jobs(tmp_path, Failing(error), kind=JobKind.MAP)) as jobs:
        job = ended(jobs, jobs.accept(JobKind.MAP, {}).id, "failed")
        assert (job.error or "").startswith(text)
        with pytest.raises(JobResultError, match="is failed and has no result file"):
            jobs.result_file(job.id)
        assert jobs.retry(job.id).error is None
        assert ended(jobs, job.id).result == {"counted": 3}


def test_a_job_without_an_archive_waits_and_can_be_cancelled(tmp_path: Path) -> None:
    away = IndexUnreachableError("milvus", "connection refused")
    with closing(open_jobs(tmp_path, Counting(*[away] * 20), kind=JobKind.MAP)) as jobs:
        job = jobs.accept(JobKind.MAP, {}).id
        wait_until(lambda: jobs.get(job).waiting_for is not None)
        assert jobs.cancel(job).state == "cancelled"
        assert result_folders(tmp_path) == []


def test_only_the_last_result_files_are_kept(tmp_path: Path) -> None:
    with closing(open_jobs(tmp_path, Counting(), kind=JobKind.MAP)) as jobs:
        ids = [ended(jobs, jobs.accept(JobKind.MAP, {"count": 0}).id).id for _ in range(18)]
        wait_until(lambda: len(result_folders(tmp_path)) == 16)
        assert result_folders(tmp_path) == ids[2:]
        assert [job.result_bytes for job in jobs.list()] == [4] * 16 + [0, 0]
    (tmp_path / "jobs" / "results" / "left-by-a-killed-process").mkdir()
    with closing(open_jobs(tmp_path, Counting(), kind=JobKind.MAP)) as jobs:
        assert result_folders(tmp_path) == ids[2:]


def test_an_archive_of_a_lost_table_keeps_its_kind(tmp_path: Path) -> None:
    work = work_of(*[failing] * 9)
    with closing(open_jobs(tmp_path, work, kind=JobKind.CLASSIFY)) as jobs:
        job = accepted(jobs, kind=JobKind.CLASSIFY, parameters={"views": 10})
        wait_until(lambda: jobs.get(job).waiting_for is not None)
    for file in (tmp_path / "jobs").glob("jobs.db*"):
        file.unlink()
    with closing(open_jobs(tmp_path, work_of(), kind=JobKind.CLASSIFY)) as jobs:
        found = ended(jobs, job)
        assert (found.kind, found.parameters) == ("classify", {"views": 10})


def failing() -> None:
    raise OSError("EIO")


def test_a_table_of_the_former_format_is_migrated(home: Path) -> None:
    data = zipped(images(3))
    archive = home / "jobs" / "archives" / "20260101-waiting" / "archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(data)
    with closing(sqlite3.connect(home / "jobs" / "jobs.db")) as database, database:
        database.executescript(FORMER_TABLE)
        insert = "INSERT INTO jobs (id, state, created, archive_bytes, total, added, skipped, kinds, batch) VALUES "
        database.execute(insert + "('20250101-done', 'done', 1767225600000000, 0, 8, 7, 1, '{\"link\": 1}', NULL)")
        database.execute(insert + f"('20260101-waiting', 'running', 1, {len(data)}, 3, 0, 0, '{{}}', '{{}}')")
        database.execute("INSERT INTO skipped VALUES ('20250101-done', 1, 'x', 'link', 'It is a link.')")
    with thread_server(home) as server:
        wait_until(lambda: server.client.get("/v1/jobs/20260101-waiting").json()["state"] == "done")
        new, old = server.client.get("/v1/jobs").json()["jobs"]
        assert (new["kind"], new["added"], new["parameters"], new["result"]) == ("archive", 3, {}, None)
        assert (old["kind"], old["seen"], old["created"][:4]) == ("archive", 8, "2026")
        assert old["skipped_images"] == [{"name": "x", "reason": "It is a link.", "kind": "link"}]
        assert finished(server.client, server.client.post("/v1/jobs", content=data, headers=ZIP))["unchanged"] == 3


def test_the_first_skipped_entries_of_all_jobs_take_one_query(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path)) as store:
        for number in range(30):
            skipped = [Skipped(f"{number}/{entry}", "why") for entry in range(120)]
            store.insert(StoredJob(f"{number:02}", JobState.DONE, 1, skipped=120), skipped)
        queries: list[str] = []
        store._database.set_trace_callback(queries.append)
        found = store.first_skipped(100)
        assert [len(entries) for entries in found.values()] == [100] * 30
        assert found["07"][99].path == "7/99"
        assert list(store.first_skipped(2, "03")) == ["03"]
        [everything, _] = [query for query in queries if "SELECT" in query]
        plan = [row[3] for row in store._database.execute(f"EXPLAIN QUERY PLAN {everything}")]
        assert not any("SCAN skipped" in step for step in plan), "only the first entries of each job are read"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadServer]:
    works = State._works
    monkeypatch.setattr(State, "_works", lambda self, index: {**works(self, index), JobKind.MAP: Counting()})
    with thread_server(home) as server:
        yield server


def test_a_job_without_an_archive_over_http(server: ThreadServer) -> None:
    client = server.client
    job = finished(client, client.post("/v1/jobs?kind=map", json={"count": 5}))
    assert (job["kind"], job["parameters"], job["result"]) == ("map", {"count": 5}, {"counted": 5})
    file = client.get(f"/v1/jobs/{job['id']}/result")
    assert (file.status_code, file.text, file.headers["content-type"]) == (200, "a,b\n", "text/csv; charset=utf-8")
    assert file.headers["content-disposition"] == f'attachment; filename="{job["id"]}.csv"'
    assert finished(client, client.post("/v1/jobs?kind=map"))["result"] == {"counted": 3}, "the body is optional"
    client.delete(f"/v1/jobs/{job['id']}")
    gone = client.get(f"/v1/jobs/{job['id']}/result")
    assert (gone.status_code, gone.json()["type"]) == (404, "urn:fc7:problem:no-job-result")
    assert client.get("/v1/jobs/missing/result").json()["type"] == "urn:fc7:problem:no-such-job"


@pytest.mark.parametrize(
    ("path", "arguments", "status", "message"),
    [
        ("?kind=map", {"json": {"count": 13}}, 422, "a lucky number"),
        ("?kind=map", {"json": {"other": 1}}, 422, "one of the parameters count, text"),
        ("?kind=map", {"json": [1]}, 400, "must be a JSON object"),
        ("?kind=map", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not valid JSON"),
        ("?kind=map", {"content": b"PK", "headers": ZIP}, 415, "application/json"),
        ("?kind=mop", {}, 422, "kind=mop"),
        ("?kind=archive", {"json": {}}, 415, "Send an archive"),
        ("?colour=red", {"content": b"PK", "headers": ZIP}, 422, "colour is not a parameter"),
    ],
)
def test_a_wrong_request_is_refused(
    server: ThreadServer, path: str, arguments: dict[str, object], status: int, message: str
) -> None:
    answer = server.client.post(f"/v1/jobs{path}", **arguments)  # type: ignore[arg-type]
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text
    assert server.client.get("/v1/jobs").json() == {"jobs": []}
    assert json.loads(answer.text)["status"] == status
