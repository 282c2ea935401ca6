"""`fc7 jobs` asks a running server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.indexing.job import JobKind
from service.state import State
from tests.index.bulk.archives import images, zipped
from tests.service.cli.helpers import invoke
from tests.service.indexing.test_job_kinds import Counting
from tests.service.indexing.test_jobs import ZIP, finished
from tests.support.server import thread_server

KEYS = "read:read-key-0123456789,write:write-key-0123456789"


def test_jobs_of_a_server_are_shown_retried_and_cancelled(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = State._works
    broken = Counting(*[FloatingPointError("no")])
    monkeypatch.setattr(State, "_works", lambda self, index: {**works(self, index), JobKind.MAP: broken})
    monkeypatch.chdir(tmp_path)
    with thread_server(home) as server:
        port = str(server.port)
        added = finished(server.client, server.client.post("/v1/jobs", content=zipped(images(3)), headers=ZIP))
        failed = finished(server.client, server.client.post("/v1/jobs?kind=map"))
        proxy = "http://127.0.0.1:9"  # it would not know this machine's addresses
        listed = invoke(home, "jobs", "list", FC7_PORT=port, HTTP_PROXY=proxy).stdout.splitlines()
        assert [line.split()[:4] for line in listed[1:]] == [
            [failed["id"], "map", "failed", "0/0"],
            [added["id"], "archive", "done", "3/3"],
        ]
        assert "Internal error" in listed[1]
        assert [job["id"] for job in json.loads(invoke(home, "jobs", "list", "--json", FC7_PORT=port).stdout)] == [
            failed["id"],
            added["id"],
        ]
        again = invoke(home, "jobs", "retry", failed["id"], "--url", f"http://localhost:{port}")
        assert again.exit_code == 0, again.output
        finished_job = server.client.get(f"/v1/jobs/{failed['id']}")
        while finished_job.json()["state"] != "done":
            finished_job = server.client.get(f"/v1/jobs/{failed['id']}")
        assert "processed" in invoke(home, "jobs", "show", failed["id"], FC7_PORT=port).stdout
        assert invoke(home, "jobs", "result", failed["id"], "--out", "a.csv", FC7_PORT=port).exit_code == 0
        assert Path("a.csv").read_text() == "a,b\n"
        refused = invoke(home, "jobs", "result", failed["id"], "--out", "a.csv", FC7_PORT=port)
        assert "exists" in str(refused.exception)
        assert invoke(home, "jobs", "cancel", failed["id"], FC7_PORT=port).exit_code == 0
        assert json.loads(invoke(home, "jobs", "result", failed["id"], FC7_PORT=port).stdout) == {"counted": 3}
        assert "has no result file" in str(invoke(home, "jobs", "result", added["id"], FC7_PORT=port).exception)
        assert "is done" in str(invoke(home, "jobs", "retry", added["id"], FC7_PORT=port).exception)
        assert "No job has the id" in str(invoke(home, "jobs", "show", "a?b c", FC7_PORT=port).exception)


def test_the_strongest_key_is_sent_to_the_own_server_only(home: Path) -> None:
    with thread_server(home, api_keys=KEYS) as server:
        variables = {"FC7_PORT": str(server.port), "FC7_API_KEYS": KEYS}
        missing = invoke(home, "jobs", "cancel", "missing", **variables)
        assert "No job has the id" in str(missing.exception), "the key may write"
        url = f"http://127.0.0.1:{server.port}"
        assert "API key is required" in str(invoke(home, "jobs", "list", "--url", url, **variables).exception)
        given = invoke(home, "jobs", "list", "--url", url, "--key", "read-key-0123456789")
        assert (given.exit_code, "No jobs" in given.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ((), {"FC7_PORT": "9"}, "No server answers at http://127.0.0.1:9"),
        ((), {"FC7_PORT": "0"}, "FC7_PORT is 0"),
        (("--url", "ftp://host"), {}, "not the address of a server"),
        (("--url", "host:8000"), {}, "not the address of a server"),
    ],
)
def test_a_missing_server_is_named(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], message: str
) -> None:
    assert message in str(invoke(tmp_path, "jobs", "list", *arguments, **variables).exception)
