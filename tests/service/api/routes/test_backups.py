"""Backups over real HTTP: taken as a job while the server works, listed, verified, deleted and restored."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from service.backup import create_backup, restore_backup
from tests.support.pictures import jpeg
from tests.support.server import ThreadServer, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

KEYS = {scope: f"{scope}-0123456789abcdef" for scope in ("read", "write", "admin")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    publish_tiny_model(folder)
    return folder


def taken(server: ThreadServer, query: str = "") -> dict[str, Any]:
    """Take a backup, and return its finished job."""
    answer = server.client.post(f"/v1/backups{query}")
    assert answer.status_code == 202, answer.text
    found: list[dict[str, Any]] = []

    def ended() -> bool:
        found.append(server.client.get(answer.headers["Location"]).json())
        return found[-1]["state"] not in ("waiting", "running")

    wait_until(ended)
    return found[-1]


def names(server: ThreadServer) -> list[str]:
    return [entry["name"] for entry in server.client.get("/v1/backups").json()["backups"]]


def test_a_backup_is_taken_listed_verified_and_restored(home: Path, tmp_path: Path) -> None:
    with thread_server(home) as server:
        server.client.put("/v1/images/one", content=jpeg(1)).raise_for_status()
        job = taken(server)
        assert (job["state"], job["kind"]) == ("done", "backup")
        assert job["seen"] == job["total"] > 1_000_000
        [listed] = server.client.get("/v1/backups").json()["backups"]
        assert (listed["name"], listed["path"]) == (job["id"], f"backups/{job['id']}")
        assert (listed["versions"], listed["active"], listed["images"]) == (["tiny:1"], "tiny:1", 1)
        assert job["result"] == {
            **{name: listed[name] for name in ("name", "versions", "active", "images", "size")},
            "deleted": [],
        }
        assert server.client.post(f"/v1/backups/{job['id']}/verify").json() == listed
        expected = server.client.post("/v1/search?k=1", content=jpeg(1)).json()["results"]
    restore_backup(home / listed["path"], tmp_path / "other")
    with thread_server(tmp_path / "other") as server:
        assert server.client.post("/v1/search?k=1", content=jpeg(1)).json()["results"] == expected


def test_only_as_many_backups_as_asked_for_are_kept(home: Path) -> None:
    with thread_server(home) as server:
        first, second = taken(server), taken(server)
        third = taken(server, "?keep=2")
        assert third["result"]["deleted"] == [first["id"]]
        assert names(server) == [second["id"], third["id"]]
        assert server.client.post("/v1/backups?keep=0").status_code == 422


def test_a_downloaded_backup_is_the_same_and_can_be_restored(home: Path, tmp_path: Path) -> None:
    source = create_backup(home, home / "backups" / "nightly")
    with thread_server(home) as server:
        answer = server.client.get("/v1/backups/nightly")
        assert answer.headers["content-type"] == "application/x-tar"
        part = server.client.get("/v1/backups/nightly", headers={"Range": "bytes=700000-"})
        assert (part.status_code, part.content) == (206, answer.content[700_000:])
        (source / "home" / "active.json").unlink()
        damaged = server.client.get("/v1/backups/nightly")
        assert (damaged.status_code, "home/active.json" in damaged.json()["detail"]) == (409, True)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        tar.extractall(tmp_path, filter="data")
    restore_backup(tmp_path / "nightly", tmp_path / "other")
    with thread_server(tmp_path / "other") as server:
        assert server.client.get("/v1/models").json()["models"][0]["active"]


def test_a_deleted_backup_is_gone_and_the_others_stay(home: Path) -> None:
    create_backup(home, home / "backups" / "nightly")  # by the command
    with thread_server(home) as server:
        job = taken(server)
        assert server.client.delete(f"/v1/backups/{job['id']}").status_code == 204
        assert names(server) == ["nightly"]
        assert [path.name for path in (home / "backups").iterdir()] == ["nightly"]
        again = server.client.delete(f"/v1/backups/{job['id']}")
        assert (again.status_code, again.json()["type"]) == (404, "urn:fc7:problem:no-such-backup")


def test_a_damaged_backup_is_named_without_the_folders_of_the_server(home: Path) -> None:
    created = create_backup(home, home / "backups" / "nightly")
    (created / "home" / "active.json").write_bytes(b"{}")
    with thread_server(home) as server:
        answer = server.client.post("/v1/backups/nightly/verify")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:fc7:problem:backup")
    assert "home/active.json differs" in answer.json()["detail"]
    assert str(home) not in answer.text


@pytest.mark.parametrize("name", ["missing", "..", ".", "%2e%2e", "..%2Fmodels", "notes", ".hidden"])
def test_only_backups_can_be_verified_and_deleted(home: Path, name: str) -> None:
    (home / "backups" / "notes").mkdir(parents=True)
    create_backup(home, home / "backups" / ".hidden")
    with thread_server(home) as server:
        assert server.client.post(f"/v1/backups/{name}/verify").status_code in (404, 405)
        assert server.client.post(f"/v1/backups/{name}/link").status_code in (404, 405)
        assert server.client.delete(f"/v1/backups/{name}").status_code in (404, 405)
        assert server.client.get("/readyz").status_code == 200
    assert sorted(path.name for path in (home / "backups").iterdir()) == [".hidden", "notes"]


def test_only_the_scope_admin_may_stop_and_retry_the_job_of_a_backup(home: Path) -> None:
    with thread_server(home, api_keys=",".join(f"{scope}:{key}" for scope, key in KEYS.items())) as server:
        read, write, admin = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())
        assert server.client.post("/v1/jobs?kind=backup", headers=write).status_code == 422
        job = server.client.post("/v1/backups", headers=admin).headers["Location"]
        wait_until(lambda: server.client.get(job, headers=read).json()["state"] == "done")
        for method, path, expected in (("POST", f"{job}/retry", 409), ("DELETE", job, 200)):
            refused = server.client.request(method, path, headers=write)
            assert (refused.status_code, "scope admin" in refused.text) == (403, True)
            assert server.client.request(method, path, headers=admin).status_code == expected
        assert server.client.delete("/v1/jobs/another", headers=write).status_code == 404


def test_a_damaged_version_fails_the_job_and_leaves_nothing(home: Path) -> None:
    damaged = publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home) as server:
        damaged.weights_path.write_bytes(damaged.weights_path.read_bytes()[:-1])
        job = taken(server)
        assert (job["state"], "weights.bin" in job["error"]) == ("failed", True)
        assert str(home) not in job["error"]
    assert list((home / "backups").iterdir()) == []


def test_a_backup_without_a_model_is_taken_by_the_command(home: Path) -> None:
    shutil.rmtree(home)
    with thread_server(home) as server:
        assert server.client.get("/v1/backups").json() == {"backups": []}
        assert server.client.post("/v1/backups").status_code == 503
