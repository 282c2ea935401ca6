"""`fc7 index build|reembed|stats`: messages, exit codes and what is stored."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.store import ModelStore
from tests.index.bulk.helpers import save_image
from tests.service.cli import helpers
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


def run(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return helpers.call("index", *words, FC7_HOME=str(home))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    publish_tiny_model(tmp_path / "home")
    return tmp_path / "home"


def test_build_stats_and_reembed(home: Path, tmp_path: Path) -> None:
    for n in range(3):
        save_image(tmp_path / "photos" / f"{n}.png", n)
    (tmp_path / "photos" / "bad.jpg").write_text("x")
    first = run(home, "build", tmp_path / "photos")
    assert first.returncode == 0, first.stderr
    assert "4 of 4 files seen: 3 added, 0 replaced, 0 unchanged, 1 skipped" in first.stderr
    assert f"1 skipped (broken image): {tmp_path / 'photos' / 'bad.jpg'}: " in first.stderr
    assert "0 added, 0 replaced, 3 unchanged, 1 skipped" in run(home, "build", tmp_path / "photos").stderr
    stats = run(home, "stats").stdout
    assert "tiny:1" in stats
    assert "exact" in stats

    publish_tiny_model(home, name="other", seed=1)
    refused = run(home, "build", tmp_path / "photos")
    assert refused.returncode == 1
    assert "fc7 index reembed" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = run(home, "reembed")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 images embedded with other:1, 0 skipped" in done.stderr
    assert "other:1" in run(home, "stats").stdout
    assert "3 replaced" not in run(home, "build", tmp_path / "photos", "--model", "tiny:1").stderr
    assert run(home, "build", tmp_path / "photos", "--rebuild").returncode == 0


def test_a_folder_of_only_broken_images_fails_after_listing_them(home: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(25):
        (tmp_path / "photos" / f"{n:02}.jpg").write_text("x")
    done = run(home, "build", tmp_path / "photos")
    assert done.returncode == 1
    assert f"25 skipped (broken image): {tmp_path}/photos/00.jpg: " in done.stderr
    assert "and 22 more" in done.stderr
    assert "error: " in done.stderr
    assert "all 25 were skipped" in done.stderr
    assert run(home, "build", tmp_path / "nowhere").returncode == 1


def test_every_file_that_is_not_added_is_counted_and_named(home: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    latin = photos / os.fsdecode(b"M\xfcller.png")
    save_image(photos / "a" / "1.png", 1)
    save_image(photos / "latin.png", 2)
    (photos / "latin.png").rename(latin)
    (photos / "photo.heic.txt").write_text("x")
    (photos / "a" / "loop").symlink_to(photos)
    (photos / ".git").mkdir()
    done = run(home, "build", photos, "--skipped", tmp_path / "skipped.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["total"], report["seen"], report["added"]) == (4, 4, 2)
    assert report["skipped_by_reason"] == {"link": 1, "not_an_image": 1}
    assert report["ignored"] == [f"{photos}/.git"]
    assert "1 skipped (link)" in done.stderr
    assert "1 ignored (hidden or system file): .git" in done.stderr
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {entry["path"] for entry in listed} == {f"{photos}/{n}" for n in ("a/loop", "photo.heic.txt", ".git")}
    with LocalImageIndex.open(home, IndexOptions(ModelStore(home).active_artifact().fingerprint, "tiny:1")) as index:
        assert index.contains("M\\xfcller.png")


def test_ctrl_c_reports_how_to_resume(home: Path, tmp_path: Path) -> None:
    count = 200  # enough that the build is still running when the signal arrives
    for n in range(count):
        save_image(tmp_path / "photos" / f"{n}.png", n)
    command = [sys.executable, "-c", helpers.SCRIPT, "index", "build", str(tmp_path / "photos"), "--batch-size", "1"]
    with subprocess.Popen(
        command, env=os.environ | {"FC7_HOME": str(home)}, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and sum(f.stat().st_size for f in home.glob("index/catalog.db*")) < 500_000:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to resume" in errors
    rest = run(home, "build", tmp_path / "photos")
    assert " 0 unchanged" not in rest.stderr
    assert f"The index has {count} images" in rest.stderr


def test_without_an_index_or_a_model_the_fix_is_reported(tmp_path: Path) -> None:
    assert "fc7 index build DIR" in run(tmp_path, "stats").stderr
    save_image(tmp_path / "photos" / "1.png", 1)
    assert run(tmp_path, "build", tmp_path / "photos").returncode == 1


def test_images_of_an_earlier_preparation_are_reported_and_replaced(home: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "photos" / "0.png", 0)
    assert run(home, "build", tmp_path / "photos").returncode == 0
    with closing(sqlite3.connect(home / "index" / "catalog.db")) as connection, connection:
        connection.execute("UPDATE images SET preparation = 1")
    for command in ("stats", "verify"):
        said = run(home, command)
        assert said.returncode == 0, said.stderr
        assert "1 images were prepared by an earlier version" in said.stdout + said.stderr
    with thread_server(home) as server:
        assert server.client.get("/v1/index").json()["outdated"] == 1
        [note] = server.client.get("/readyz").json()["notes"]
        assert "fc7 index build DIR" in note
        data = (tmp_path / "photos" / "0.png").read_bytes()
        assert server.client.put("/v1/images/0.png", files={"file": data}).json()["outcome"] == "replaced"
        assert server.client.get("/v1/index").json()["outdated"] == 0
        assert not server.client.get("/readyz").json()["notes"]
    with closing(sqlite3.connect(home / "index" / "catalog.db")) as connection, connection:
        connection.execute("UPDATE images SET preparation = 1")
    assert "1 replaced" in run(home, "build", tmp_path / "photos").stderr
    assert "earlier version" not in run(home, "verify").stderr
