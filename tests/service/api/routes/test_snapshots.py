"""Snapshots over real HTTP: taken, listed, verified, downloaded, restored and deleted."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from index.catalog.backup import restore_snapshot, take_snapshot
from service.backup import create_backup
from tests.support.pictures import jpeg
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

PATH = "/v1/index/snapshots"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    publish_tiny_model(folder)
    return folder


def taken(server: ThreadServer) -> dict[str, Any]:
    answer = server.client.post(PATH)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def names(server: ThreadServer) -> list[str]:
    return [entry["name"] for entry in server.client.get(PATH).json()["snapshots"]]


def test_a_snapshot_is_taken_listed_verified_downloaded_and_restored(home: Path, tmp_path: Path) -> None:
    publish_tiny_model(tmp_path / "other")
    with thread_server(home) as server:
        server.client.put("/v1/images/one", content=jpeg(1)).raise_for_status()
        first = taken(server)
        server.client.put("/v1/images/two", content=jpeg(2)).raise_for_status()
        second = taken(server)
        assert (first["images"], second["images"]) == (1, 2)
        assert server.client.get(PATH).json() == {"snapshots": [first, second]}
        assert server.client.post(f"{PATH}/{first['name']}/verify").json() == first
        answer = server.client.get(f"{PATH}/{first['name']}")
        assert answer.headers["content-disposition"] == f'attachment; filename="{first["name"]}.tar"'
        (tmp_path / "file.tar").write_bytes(answer.content)
    with tarfile.open(tmp_path / "file.tar") as tar:
        assert {each.mtime for each in tar} == {int(tar.getmembers()[0].mtime)}
        tar.extractall(tmp_path, filter="data")
    restore_snapshot(tmp_path / first["name"], tmp_path / "other")
    with thread_server(tmp_path / "other") as server:
        assert [image["key"] for image in server.client.get("/v1/images").json()["images"]] == ["one"]


def test_an_interrupted_download_is_resumed_with_a_range(home: Path) -> None:
    with thread_server(home) as server:
        path = f"{PATH}/{taken(server)['name']}"
        whole = server.client.get(path)
        size, etag = len(whole.content), whole.headers["etag"]
        assert (whole.status_code, int(whole.headers["content-length"])) == (200, size)
        for text, start, end in (
            ("700-", 700, size),
            ("513-1999", 513, 2000),
            ("2000-99999999", 2000, size),
            ("-1500", size - 1500, size),
        ):
            part = server.client.get(path, headers={"Range": f"bytes={text}", "If-Range": etag})
            assert (part.status_code, part.content) == (206, whole.content[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        changed = server.client.get(path, headers={"Range": "bytes=700-", "If-Range": '"another"'})
        assert (changed.status_code, changed.content) == (200, whole.content)
        beyond = server.client.get(path, headers={"Range": f"bytes={size}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        head = server.client.head(path, headers={"Range": "bytes=700-"})  # only GET has ranges
        assert (head.status_code, int(head.headers["content-length"])) == (200, size)
        for odd in ("bytes=", "bytes=-", "bytes=1-2,5-6", "rows=1-2"):
            assert server.client.get(path, headers={"Range": odd}).content == whole.content


def test_a_deleted_snapshot_is_gone_and_the_others_stay(home: Path) -> None:
    with thread_server(home) as server:
        first, second = taken(server), taken(server)
        assert server.client.delete(f"{PATH}/{first['name']}").status_code == 204
        assert names(server) == [second["name"]]
        assert [path.name for path in (home / "snapshots").iterdir()] == [second["name"]]
        for method, rest in (("GET", ""), ("POST", "/link"), ("POST", "/verify"), ("DELETE", "")):
            answer = server.client.request(method, f"{PATH}/{first['name']}{rest}")
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:fc7:problem:no-such-snapshot")


@pytest.mark.parametrize("name", ["missing", "..", ".", "%2e%2e", "..%2Findex", "notes", ".hidden", "%2e%2e%2findex"])
def test_only_complete_snapshots_can_be_downloaded_and_deleted(home: Path, name: str) -> None:
    with thread_server(home) as server:
        kept = taken(server)["name"]
        (home / "snapshots" / "notes").mkdir()
        take_snapshot(home, home / "snapshots" / ".hidden")  # as one that is being written
        assert names(server) == [kept]
        for method, rest in (("GET", ""), ("POST", "/link"), ("POST", "/verify"), ("DELETE", "")):
            connection = HTTPConnection("127.0.0.1", server.port)  # sends dots as they are
            connection.request(method, f"{PATH}/{name}{rest}")
            assert connection.getresponse().status in (404, 405)
            connection.close()
        assert server.client.get("/v1/index").status_code == 200
    assert sorted(path.name for path in (home / "snapshots").iterdir()) == [".hidden", kept, "notes"]


def test_a_damaged_snapshot_is_explained_without_the_folders_of_the_server(home: Path) -> None:
    with thread_server(home) as server:
        name = taken(server)["name"]
        file = home / "snapshots" / name / "catalog.db"
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        changed = server.client.post(f"{PATH}/{name}/verify")
        file.write_bytes(data[:-1])
        cut = server.client.get(f"{PATH}/{name}")
        for answer, reason in ((changed, "SHA-256 differs"), (cut, f"{len(data) - 1:,} of {len(data):,} bytes")):
            assert (answer.status_code, answer.json()["type"]) == (409, "urn:fc7:problem:snapshot")
            assert reason in answer.json()["detail"]
            assert str(home) not in answer.text
        assert server.client.delete(f"{PATH}/{name}").status_code == 204


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
@pytest.mark.parametrize(("path", "folder"), [(PATH, "snapshots"), ("/v1/backups", "backups")])
def test_a_copy_whose_name_is_not_utf8_is_left_out_of_the_list(home: Path, path: str, folder: str) -> None:
    with thread_server(home):  # creates an index
        pass
    take_snapshot(home, home / "snapshots" / "nightly")
    create_backup(home, home / "backups" / "nightly")
    shutil.copytree(home / folder / "nightly", home / folder / os.fsdecode(b"\xff"))
    with thread_server(home) as server:
        listed = server.client.get(path)
        assert listed.status_code == 200, listed.text
        assert [each["name"] for each in listed.json()[folder]] == ["nightly"]
