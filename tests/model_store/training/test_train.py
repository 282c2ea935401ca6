"""Training as a user runs it: a process, Ctrl-C, and what the commands say."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model_store.training.runs import run as runs
from model_store.training.runs.run import find_run, read_tensors
from service.cli import main
from tests.support.class_folders import write_class_folders

TRIAL = """\
width = 0.015625
input_scale = 0.015625
dropout = "inverted"
initialisation = "he"
epochs = 12
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
    module = [sys.executable, "-W", "error", "-m", "model_store.training.train"]
    return [*module, "--data", str(data), "--recipe", str(data.parent / "trial.toml"), "--home", str(home), *more]


def weights(home: Path, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(find_run(home, name) / runs.MODEL_FILE, runs.WEIGHTS_PREFIX)


def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    whole = subprocess.run(arguments(data, tmp_path, "--name", "whole"), capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert "Next: fc7 evaluate whole, then fc7 export whole" in whole.stderr

    stopped = subprocess.Popen(arguments(data, tmp_path, "--name", "stopped"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/stopped-*/" + runs.CHECKPOINT_FILE)) and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, told
    assert "fc7 train --resume --name stopped" in told
    assert not (find_run(tmp_path, "stopped") / runs.MODEL_FILE).exists()

    resumed = arguments(data, tmp_path, "--name", "stopped", "--resume")
    assert subprocess.run(resumed, capture_output=True, check=False).returncode == 0
    one, other = weights(tmp_path, "whole"), weights(tmp_path, "stopped")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--name", "a", "--data", "{tmp}/none"], "none/train is no folder"),
        (["train", "--name", "a"], "which images?"),
        (["train", "--name", "a b", "--data", "{data}"], "'a b' is not a valid model name"),
        (["train", "--name", "a", "--data", "{data}", "--set", "epoch=1"], "unknown key 'epoch'"),
        (["train", "--name", "a", "--resume"], "there is no run 'a'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
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
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert left.value.code == 1
    assert message in told
    assert len(told.strip().splitlines()) == 1, told
    assert not (tmp_path / "home" / "runs").exists()
