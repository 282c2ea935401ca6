"""`fc7 demo` leaves alone what is there: a model of the user's, and a demo that is complete."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_model import publish_tiny_model


def _demo(home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from service.cli import main; main()", "demo"]
    return subprocess.run(
        command, env=os.environ | {"FC7_HOME": str(home)}, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_home_with_a_model_of_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, name="birds", activate=True)
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left as it is" in done.stdout
    assert "fc7 serve" in done.stdout
    assert not (tmp_path / "demo").exists()
    assert not (tmp_path / "runs").exists()


def test_a_complete_demo_goes_straight_on(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "complete").touch()
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    home = tmp_path / "a-file"
    home.write_text("no folder")
    done = _demo(home)
    assert done.returncode == 1
    assert str(home) in done.stderr
