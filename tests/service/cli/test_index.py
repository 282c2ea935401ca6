"""`fc7 index build|reembed|stats` as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.index.bulk.helpers import save_image
from tests.service.cli import helpers
from tests.support.tiny_model import publish_tiny_model


def run(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return helpers.run("index", *words, FC7_HOME=str(home))


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
    assert "4 of 4 images seen: 3 added, 0 replaced, 0 unchanged, 1 skipped" in first.stderr
    assert f"skipped {tmp_path / 'photos' / 'bad.jpg'}: " in first.stderr
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
    assert done.stderr.count("skipped /") == 20
    assert "and 5 more" in done.stderr
    assert "error: " in done.stderr
    assert "all 25 were skipped" in done.stderr
    assert run(home, "build", tmp_path / "nowhere").returncode == 1


def test_ctrl_c_reports_how_to_resume(home: Path, tmp_path: Path) -> None:
    count = 400  # enough that the build is still running when the signal arrives
    for n in range(count):
        save_image(tmp_path / "photos" / f"{n}.png", n)
    command = [sys.executable, "-c", helpers.SCRIPT, "index", "build", str(tmp_path / "photos"), "--batch-size", "1"]
    with subprocess.Popen(
        command, env=os.environ | {"FC7_HOME": str(home)}, stderr=subprocess.PIPE, text=True
    ) as process:
        catalog = home / "index" / "catalog.db-wal"
        while process.poll() is None and not (catalog.exists() and catalog.stat().st_size > 300_000):
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
