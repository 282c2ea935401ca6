"""`fc7 demo` does not change a home that has a user's model or a complete demo."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.training import train as training
from model_store.training.loop import train
from model_store.training.runs.run import read_info
from service.cli.data import commands as data
from service.cli.training import demo
from service.settings import Settings
from tests.service.cli.helpers import WITHOUT_TORCH, call, run
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.class_folders import TRIAL_RECIPE, write_class_folders


def test_a_home_with_another_model_is_not_changed_and_needs_no_torch(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, name="birds", activate=True)
    done = run("demo", script=WITHOUT_TORCH, FC7_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "was not changed" in done.stderr
    assert "Next: fc7 serve" in done.stderr
    assert not (tmp_path / "demo").exists()
    assert not (tmp_path / "runs").exists()


def test_a_complete_demo_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "complete").touch()
    done = call("demo", FC7_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]


def test_the_error_names_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "a-file"
    home.write_text("no folder")
    done = call("demo", FC7_HOME=str(home))
    assert done.returncode == 1
    assert str(home) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("change", ["images", "format"])
def test_an_interrupted_run_of_an_earlier_version_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    folder = write_class_folders(tmp_path / "demo")
    stop = threading.Event()
    stop.set()
    old = train(folder, TRIAL_RECIPE, home=tmp_path, name=data.DEMO_NAME, stop=stop).run
    if change == "images":
        (folder / "train" / "red" / "0.png").unlink()
    else:
        (old / "run.json").write_text((old / "run.json").read_text().replace('"format": 1', '"format": 0'))
    small = ["width=0.015625", "dropout=inverted", "initialisation=he", "epochs=1", "precision=float32"]
    monkeypatch.setattr(data, "DEMO_SETTINGS", small)
    run_command = training.run_command
    monkeypatch.setattr(training, "run_command", lambda request: run_command(replace(request, experiment=True)))
    demo._train(Settings(home=tmp_path, device="cpu"), folder, seed=0)
    [_, new] = sorted((tmp_path / "runs").iterdir())
    assert (new / "model.safetensors").exists()
    assert read_info(new).train_images == (17 if change == "images" else 18)
    assert "the training starts again" in capsys.readouterr().err
