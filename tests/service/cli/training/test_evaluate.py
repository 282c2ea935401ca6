"""`fc7 evaluate`: the next step for runs and versions, and progress without a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_store.classes.figures import Figures
from service.cli import console
from tests.service.cli.helpers import invoke
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.run_folder import CLASSES, write_pictures, write_run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run and a version, both called small, and two versions called other, the second one active."""
    home = tmp_path / "home"
    write_pictures(tmp_path / "data")
    write_run(home, tmp_path / "data")
    for name in ("small", "other", "other"):
        publish_tiny_model(home, name, classes=CLASSES)
    invoke(home, "models", "activate", "other:2")
    return home


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("small", "fc7 export small publishes the run; fc7 report small --out DIR draws its figures"),
        ("small-20260102-030405", "fc7 export small-20260102-030405 publishes the run"),
        ("small:1", "fc7 models activate small:1 makes it the active version; fc7 report small:1 --out DIR"),
        ("other:1", "fc7 models activate other:1"),
        ("other", "fc7 index build DIR, then fc7 serve; fc7 report other --out DIR"),
    ],
)
def test_the_next_step_names_what_was_evaluated(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, step: str
) -> None:
    monkeypatch.setattr(Figures, "better_than_baseline", True)
    done = invoke(home, "evaluate", model, "--data", tmp_path / "data")
    assert done.exit_code == 0, done.output
    assert f"Next: {step}" in done.stderr


def test_the_next_step_after_a_weak_net_is_to_train_a_better_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figures, "better_than_baseline", False)
    done = invoke(home, "evaluate", "small", "--data", tmp_path / "data")
    assert "Next: fc7 train with more images, longer (--minutes), or from ImageNet's weights" in done.stderr
    assert "fc7 export" not in done.stderr


def test_progress_is_printed_as_lines_without_a_terminal(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = invoke(home, "evaluate", "small", "--data", tmp_path / "data")
    assert "evaluating" not in quick.stderr
    monkeypatch.setattr(console, "LINE_EVERY_S", 0)
    slow = invoke(home, "evaluate", "small", "--data", tmp_path / "data", "--json")
    assert "evaluating: 12 of 12 (100%)" in slow.stderr.splitlines()
    assert json.loads(slow.stdout)["images_seen"] == 12
