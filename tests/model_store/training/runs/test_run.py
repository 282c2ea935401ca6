"""Finding and loading runs."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.errors import CheckpointError
from model_store.training.loop import resume
from model_store.training.parents import find_run_folder
from model_store.training.runs.run import (
    MODEL_FILE,
    RUN_FILE,
    find_run,
    find_trained_run,
    load_run,
    locked_run,
    unwritable,
)
from tests.model_store.training.helpers import RECIPE, RecordingReporter, train_trial
from tests.support.training.class_folders import write_class_folders


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_trial(data, tmp_path_factory.mktemp("finished_run")).run


def test_the_newest_run_is_found_by_name(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    first, second = train_trial(data, tmp_path, recipe).run, train_trial(data, tmp_path, recipe).run
    assert first != second
    assert find_run(tmp_path, "trial") == second
    assert find_run(tmp_path, first.name) == first
    assert find_run(tmp_path, str(first)) == first
    with pytest.raises(CheckpointError, match=f"'tria'.*{second.name}"):
        find_run(tmp_path, "tria")


def test_the_newest_run_that_has_weights_is_used_and_that_is_said(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    first, second = train_trial(data, tmp_path, recipe).run, train_trial(data, tmp_path, recipe).run
    (second / MODEL_FILE).unlink()  # as after a run that diverged in its first epoch
    said: list[str] = []
    assert find_trained_run(tmp_path, "trial", said.append) == first
    assert said == [
        f"{second.name} has no weights, as it ended before its first checkpoint. {first.name} is used instead."
    ]
    assert find_run_folder(tmp_path, "trial") == first
    with pytest.raises(CheckpointError, match=f"{second.name} has no weights.*fc7 train --resume"):
        find_trained_run(tmp_path, second.name)


def test_two_processes_cannot_train_one_run(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    with locked_run(run), pytest.raises(CheckpointError, match=f"{run} is being trained by another process"):
        resume(run)
    assert resume(run).finished


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "Free some disk space"), (errno.EROFS, "another with --home"), (errno.EACCES, "writable")],
)
def test_what_cannot_be_written_is_named_with_the_fix(number: int, fix: str) -> None:
    text = str(unwritable(Path("run"), OSError(number, os.strerror(number), "run/.lock")))
    assert text.startswith(f"run/.lock cannot be written: {os.strerror(number)}. ")
    assert fix in text
    assert ("disk space" in text) == (number == errno.ENOSPC)


def test_a_folder_that_is_not_a_run_is_rejected(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.json"):
        load_run(tmp_path)
    values = json.loads((finished_run / RUN_FILE).read_text())
    (tmp_path / RUN_FILE).write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(CheckpointError, match="another version of fc7"):
        load_run(tmp_path)
