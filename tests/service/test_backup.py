"""Backups: what they contain, and that a restore brings it back or changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from index.errors import IndexLockedError
from model_store.errors import ArtifactCorruptError
from model_store.store import ModelStore
from service.backup import (
    BackupError,
    create_backup,
    list_backups,
    read_backup,
    remove_oldest,
    restore_backup,
    verify_backup,
)
from tests.service.cli.helpers import invoke
from tests.support.pictures import jpeg
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two versions, an encoder and two indexed images."""
    home = tmp_path_factory.mktemp("original")
    publish_tiny_model(home, seed=1)
    publish_tiny_model(home, seed=2)
    (home / "codes" / "abc").mkdir(parents=True)
    (home / "codes" / "abc" / "codes.onnx").write_bytes(b"an encoder")
    with thread_server(home) as server:
        for seed, key in enumerate(("one", "two"), 1):
            server.client.put(f"/v1/images/{key}", content=jpeg(seed)).raise_for_status()
    return home


@pytest.fixture
def home(original: Path, tmp_path: Path) -> Path:
    """A copy of the home, for one test."""
    return Path(shutil.copytree(original, tmp_path / "home"))


def answers(home: Path) -> tuple[object, object]:
    """Return the classes of an image, and the nearest indexed image."""
    with thread_server(home) as server:
        classes = server.client.post("/v1/classify", content=jpeg(1)).json()
        neighbours = server.client.post("/v1/search?k=1", content=jpeg(1)).json()
    return classes, neighbours


def test_a_restored_home_gives_the_same_answers(home: Path, tmp_path: Path) -> None:
    created = create_backup(home, tmp_path / "backup")
    manifest, aside = restore_backup(created, tmp_path / "other")
    assert aside is None
    assert (len(manifest.versions), manifest.images) == (2, 2)
    assert answers(tmp_path / "other") == answers(home)
    assert (tmp_path / "other" / "codes" / "abc" / "codes.onnx").read_bytes() == b"an encoder"
    assert ModelStore(tmp_path / "other").active() == ModelStore(home).active()


def test_a_backup_is_taken_while_a_server_writes(home: Path, tmp_path: Path) -> None:
    with thread_server(home) as server:
        server.client.put("/v1/images/three", content=jpeg(3)).raise_for_status()
        created = create_backup(home, tmp_path / "backup")
        server.client.put("/v1/images/four", content=jpeg(4)).raise_for_status()
    assert verify_backup(created).images == 3


def test_a_home_in_use_is_replaced_only_on_request_and_kept_aside(home: Path, tmp_path: Path) -> None:
    created = create_backup(home, tmp_path / "backup")
    before = answers(home)
    publish_tiny_model(home, seed=3)
    with thread_server(home) as server:
        server.client.delete("/v1/images/one").raise_for_status()
    with pytest.raises(BackupError, match="--replace"):
        restore_backup(created, home)
    assert len(ModelStore(home).list()) == 3
    _, aside = restore_backup(created, home, replace=True)
    assert answers(home) == before
    assert aside is not None
    assert len(ModelStore(aside).list()) == 3
    assert (aside / "index" / "catalog.db").is_file()


def test_a_home_of_a_running_server_is_not_replaced(home: Path, tmp_path: Path) -> None:
    created = create_backup(home, tmp_path / "backup")
    with thread_server(home) as server:
        with pytest.raises(IndexLockedError):
            restore_backup(created, home, replace=True)
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert not list(home.glob("replaced-*"))


@pytest.mark.parametrize("name", ["home/active.json", "index/catalog.db", "home/codes/abc/codes.onnx"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_backup_is_named_and_changes_nothing(home: Path, tmp_path: Path, name: str, damage: str) -> None:
    created = create_backup(home, tmp_path / "backup")
    file = created / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"x")
    for attempt in (verify_backup, lambda path: restore_backup(path, tmp_path / "other")):
        with pytest.raises(BackupError, match=name):
            attempt(created)
    assert not (tmp_path / "other").exists()


def test_a_damaged_version_makes_no_backup(home: Path, tmp_path: Path) -> None:
    [first, _] = ModelStore(home).list()
    first.weights_path.write_bytes(first.weights_path.read_bytes()[:-1])
    with pytest.raises(ArtifactCorruptError, match=r"weights\.bin"):
        create_backup(home, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_backup_of_a_later_format_is_refused_with_the_version_that_reads_it(home: Path, tmp_path: Path) -> None:
    created = create_backup(home, tmp_path / "backup")
    values = json.loads((created / "backup.json").read_text())
    (created / "backup.json").write_text(json.dumps(values | {"format": 2, "fc7": "9.1"}))
    with pytest.raises(BackupError, match=r"format 2, written by fc7 9\.1"):
        read_backup(created)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": "x"}', "\x00"])
def test_a_broken_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "backup.json").write_text(text)
    with pytest.raises(BackupError, match=r"backup\.json"):
        read_backup(tmp_path)


def test_paths_outside_the_backup_are_refused(home: Path, tmp_path: Path) -> None:
    created = create_backup(home, tmp_path / "backup")
    values = json.loads((created / "backup.json").read_text())
    values["files"]["home/../../escaped"] = {"sha256": "0" * 64, "size": 1}
    (created / "backup.json").write_text(json.dumps(values))
    with pytest.raises(BackupError, match="files"):
        restore_backup(created, tmp_path / "other")


def test_only_the_newest_backups_are_kept(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    paths = [create_backup(home, folder / name) for name in ("c", "a", "b")]
    (folder / "notes").mkdir()
    assert [path for path, _ in list_backups(folder)] == paths
    assert remove_oldest(folder, 2) == paths[:1]
    assert [path for path, _ in list_backups(folder)] == paths[1:]
    assert (folder / "notes").is_dir()


def test_a_home_without_an_index_or_models_can_be_backed_up(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    created = create_backup(tmp_path / "empty", tmp_path / "backup")
    manifest, _ = restore_backup(created, tmp_path / "other")
    assert (manifest.versions, manifest.active, manifest.images) == ((), None, None)


def test_the_commands_create_list_verify_and_restore(home: Path, tmp_path: Path) -> None:
    for _ in range(3):
        done = invoke(home, "backup", "create", "--keep", "2", "--json")
        assert done.exit_code == 0, done.stderr
    path = json.loads(done.stdout)["path"]
    listed = json.loads(invoke(home, "backup", "list", "--json").stdout)
    assert len(listed) == 2
    assert listed[-1]["path"] == path
    assert invoke(home, "backup", "verify", path).exit_code == 0
    done = invoke(tmp_path / "other", "backup", "restore", path)
    assert done.exit_code == 0, done.stderr
    assert "2 images" in done.stderr
    assert "Next: fc7 doctor" in done.stderr
