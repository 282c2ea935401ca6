"""`fc7 demo` does not change a home that has a user's model or a complete demo."""

from __future__ import annotations

from pathlib import Path

from tests.service.cli.helpers import run
from tests.support.tiny_model import publish_tiny_model


def test_a_home_with_another_model_is_not_changed(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, name="birds", activate=True)
    done = run("demo", FC7_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "was not changed" in done.stderr
    assert "Next: fc7 serve" in done.stderr
    assert not (tmp_path / "demo").exists()
    assert not (tmp_path / "runs").exists()


def test_a_complete_demo_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "complete").touch()
    done = run("demo", FC7_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]


def test_the_error_names_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "a-file"
    home.write_text("no folder")
    done = run("demo", FC7_HOME=str(home))
    assert done.returncode == 1
    assert str(home) in done.stderr
    assert "Traceback" not in done.stderr
