"""The present code serves, backs up and restores the home of an earlier release; formats of later ones are refused."""

from __future__ import annotations

import json
import re
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from model_store.durable import sha256_of
from model_store.store import ModelStore
from service.backup import BackupError, create_backup, restore_backup
from tests.service.cli.helpers import invoke, run
from tests.support.pictures import encoded, scene
from tests.support.server import thread_server

# Written by `make_home.py` with the code of this commit, which had neither novelty nor explanations.
RELEASE = Path(__file__).with_name("home-46f8701.tar.xz")
KEYS = ["folder/picture-3.png", "picture-0", "picture-1", "picture-2"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of the release."""
    with tarfile.open(RELEASE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "home"


def picture(seed: int) -> bytes:
    """Return an image that the release has indexed."""
    return encoded(scene(seed, 64, 64), "PNG")


def nearest(client: httpx.Client, seed: int) -> str:
    """Return the key of the most similar indexed image."""
    [result] = client.post("/v1/search?k=1", content=picture(seed)).raise_for_status().json()["results"]
    assert result["neighbours"][0]["distance"] < 0.01
    return str(result["neighbours"][0]["key"])


def test_the_home_of_the_release_is_served(home: Path) -> None:
    with thread_server(home) as server:
        client = server.client
        assert client.get("/readyz").json()["status"] == "ready"
        assert [nearest(client, seed) for seed in range(4)] == [*KEYS[1:], KEYS[0]]
        answer = client.post("/v1/classify?k=3", content=picture(0)).raise_for_status().json()
        assert answer["model"] == {"name": "tiny", "version": 2}
        assert len(answer["results"][0]["predictions"]) == 3
        listed = client.get("/v1/images", params={"where": "label:kind 0"}).json()["images"]
        assert [image["metadata"] for image in listed] == [
            {"label": "kind 0", "number": 0},
            {"label": "kind 0", "number": 2},
        ]
        [job] = client.get("/v1/jobs").json()["jobs"]
        assert (job["kind"], job["state"], job["added"]) == ("archive", "done", 1)


def test_what_versions_of_the_release_have_not_is_answered_as_documented(home: Path) -> None:
    with thread_server(home) as server:
        client = server.client
        for path in ("classify", "search"):
            assert client.post(f"/v1/{path}", content=picture(0)).json()["results"][0]["novelty"] is None
        for path in ("explain", "classify?explain=true"):
            answer = client.post(f"/v1/{path}", content=picture(0))
            assert (answer.status_code, answer.json()["type"]) == (409, "urn:fc7:problem:not-explainable")
            assert "fc7 models add-explanations" in answer.json()["detail"]


def test_the_home_can_be_changed_after_the_upgrade(home: Path) -> None:
    with thread_server(home) as server:
        client = server.client
        client.put("/v1/images/new", content=picture(7)).raise_for_status()
        client.delete("/v1/images/picture-0").raise_for_status()
        assert nearest(client, 7) == "new"
        client.post("/v1/models/rollback").raise_for_status()
        assert client.post("/v1/classify", content=picture(0)).json()["model"]["version"] == 1
    verified = invoke(home, "index", "verify")
    assert verified.exit_code == 0, verified.stderr


def test_the_home_of_the_release_is_backed_up_before_and_after_the_upgrade(home: Path, tmp_path: Path) -> None:
    create_backup(home, tmp_path / "before")
    with thread_server(home):
        create_backup(home, tmp_path / "after")
    for name in ("before", "after"):
        manifest, _ = restore_backup(tmp_path / name, tmp_path / f"restored-{name}")
        assert (manifest.versions, manifest.active, manifest.images) == (("tiny:1", "tiny:2"), "tiny:2", 4)
        with thread_server(tmp_path / f"restored-{name}") as server:
            assert [nearest(server.client, seed) for seed in range(4)] == [*KEYS[1:], KEYS[0]]


def newer_index(home: Path) -> None:
    with closing(sqlite3.connect(home / "index" / "catalog.db")) as database:
        database.execute("PRAGMA user_version = 99")


def newer_version(home: Path) -> None:
    file = ModelStore(home).resolve("tiny:2").path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99, "producer": "fc7 9.1"}))


def content(home: Path) -> tuple[list[str], dict[Path, bytes]]:
    """Return the catalog as SQL, and the files of the versions."""
    with closing(sqlite3.connect(home / "index" / "catalog.db")) as database:
        [[number]] = database.execute("PRAGMA user_version")
        return [str(number), *database.iterdump()], {
            path: path.read_bytes() for path in home.glob("models/*/*/*") if path.is_file()
        }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (newer_index, r"format 99, which a later fc7 wrote, but this fc7 \(\d.*Upgrade fc7, or restore a backup"),
        (newer_version, r"format 99, and this fc7 \(\d.*Install the version that wrote it \(fc7 9\.1\)"),
    ],
    ids=["index", "version"],
)
def test_a_home_of_a_later_release_is_refused_and_not_changed(
    home: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(home)
    before = content(home)
    served = run("serve", "--port", "0", FC7_HOME=str(home))
    assert served.returncode == 1
    assert re.search(reason, served.stderr), served.stderr
    assert content(home) == before


@pytest.mark.parametrize(
    ("name", "member"), [("index/manifest.json", "schema_version"), ("home/models/tiny/2/manifest.json", "format")]
)
def test_a_backup_with_a_later_index_or_version_is_refused_before_anything_changes(
    home: Path, tmp_path: Path, name: str, member: str
) -> None:
    created = create_backup(home, tmp_path / "backup")
    file = created / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {member: 99}))
    values = json.loads((created / "backup.json").read_text()) | {"fc7": "9.1"}
    values["files"][name] = {"sha256": sha256_of(file), "size": file.stat().st_size}
    (created / "backup.json").write_text(json.dumps(values))
    with pytest.raises(BackupError, match=r"written by fc7 9\.1, and this fc7 \(\d.*format 99.*Nothing was restored"):
        restore_backup(created, home, replace=True)
    assert not list(home.glob("replaced-*"))
    with thread_server(home) as server:
        assert nearest(server.client, 0) == "picture-0"
