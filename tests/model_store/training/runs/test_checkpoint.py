"""Checkpoints: what cannot be written, and what cannot be read."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.classes.figures import FigureCounter
from model_store.errors import CheckpointError
from model_store.training.errors import NonFiniteLossError
from model_store.training.loop import resume
from model_store.training.runs.checkpoint import Position, Validation, finish, write_checkpoint
from model_store.training.runs.run import CHECKPOINT_FILE, LOCK_FILE, MODEL_FILE, load_run
from tests.model_store.training.helpers import RecordingReporter, same_weights, train_trial
from tests.support.training.class_folders import write_class_folders


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_trial(data, tmp_path_factory.mktemp("finished_run")).run


def test_non_finite_weights_do_not_replace_a_checkpoint(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters())
    position = Position(4, 1, 0, 0.0, 0, 0.0, {})
    write_checkpoint(tmp_path, net, optimizer, position)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with torch.no_grad():
        net.weight[1, 1] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        write_checkpoint(tmp_path, net, optimizer, replace(position, step=5))
    assert (caught.value.step, caught.value.checkpoint) == (5, tmp_path / CHECKPOINT_FILE)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before
    with pytest.raises(NonFiniteLossError):
        finish(tmp_path, net, 5, Validation(2, FigureCounter(2).figures(["a", "b"])))
    assert not (tmp_path / MODEL_FILE).exists()


def test_a_broken_or_missing_checkpoint_is_an_error(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    file = run / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(file)):
        resume(run)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing or broken"):
        load_run(run)


def test_a_full_disk_keeps_the_previous_checkpoint(data: Path, tmp_path: Path, finished_run: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    file = run / CHECKPOINT_FILE
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written.*The previous one is kept.*--resume"):
            resume(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [LOCK_FILE]
    assert resume(run).finished
    assert same_weights(run, finished_run)
