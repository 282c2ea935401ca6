"""The training command: stopping by a signal and resuming in a process, figures at the end, and error messages."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model_store.training.runs.run import CHECKPOINT_FILE, MODEL_FILE, WEIGHTS_PREFIX, find_run, read_tensors
from model_store.training.train import main as train
from service.cli import main
from tests.support.training.class_folders import write_class_folders
from tests.support.training.run_folder import write_run

TRIAL = """\
width = 0.015625
input_scale = 0.015625
dropout = "inverted"
initialisation = "he"
epochs = 6
batch_size = 2
schedule = "constant"
precision = "float32"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("command")
    (root / "trial.toml").write_text(TRIAL)
    return write_class_folders(root / "data")


def arguments(data: Path, home: Path, *more: str) -> list[str]:
    recipe = str(data.parent / "trial.toml")
    return ["--data", str(data), "--recipe", recipe, "--home", str(home), "--experiment", *more]


def weights(home: Path, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(find_run(home, name) / MODEL_FILE, WEIGHTS_PREFIX)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_run_stopped_by_a_signal_resumes_to_the_same_bits(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    assert train(arguments(data, tmp_path, "--name", "whole")) == 0
    assert "Next: fc7 evaluate whole, then fc7 export whole" in capsys.readouterr().err

    command = [sys.executable, "-W", "error", "-m", "model_store.training.train"]
    stopped = subprocess.Popen(
        [*command, *arguments(data, tmp_path, "--name", "stopped")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/stopped-*/" + CHECKPOINT_FILE)) and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.send_signal(number)
    _, output = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, output
    assert "fc7 train --resume --name stopped" in output
    assert not (find_run(tmp_path, "stopped") / MODEL_FILE).exists()

    assert train(arguments(data, tmp_path, "--name", "stopped", "--resume")) == 0
    one, other = weights(tmp_path, "whole"), weights(tmp_path, "stopped")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_a_finished_run_prints_the_figures_of_its_end_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rate is so high that the last epoch is not the best one.
    more = ["--set", "keep_best=true", "--set", "learning_rate=0.05", "--set", "epochs=8", "--name", "best"]
    assert train(arguments(data, tmp_path, *more)) == 0
    first = capsys.readouterr().err
    end = first[first.index("The final weights are those of epoch") :]
    for part in (
        "95 % interval",
        "always predicting the most frequent class",
        "balanced accuracy",
        "Recall (and precision)",
    ):
        assert part in end
    assert "Next: fc7 evaluate best" in end
    assert train(["--name", "best", "--home", str(tmp_path), "--resume"]) == 0
    again = capsys.readouterr().err
    assert "nothing to resume" in again
    assert end in again


def test_a_finished_run_of_an_older_version_has_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, tmp_path / "data")
    assert train(["--name", "small", "--home", str(tmp_path), "--resume"]) == 0
    output = capsys.readouterr().err
    assert "fc7 evaluate measures them" in output
    assert "Next: fc7 evaluate small, then fc7 export small" in output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--name", "a", "--data", "{tmp}/none"], "none is not a folder"),
        (["train", "--name", "a"], "A data set is required"),
        (["train"], "A data set is required"),
        (["train", "{data}", "--name", "a", "--set", "width=0.5"], "2048 neurons in fc7, but a version that can"),
        (["train", "{data}", "--name", "a", "--set", "width=2"], "8192 neurons in fc7"),
        (["train", "--name", "a b", "--data", "{data}"], "'a b' is not a valid model name"),
        (["train", "--name", "a", "--data", "{data}", "--set", "epoch=1"], "Unknown key 'epoch'"),
        (["train", "--name", "a", "--resume"], "There is no run 'a'"),
    ],
)
def test_an_error_prints_one_line_and_exits_with_code_1(
    *,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("FC7_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["fc7", *(word.format(tmp=tmp_path, data=data) for word in command)])
    with pytest.raises(SystemExit) as exit_:
        main()
    errors = capsys.readouterr().err
    assert exit_.value.code == 1
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert not (tmp_path / "home" / "runs").exists()
