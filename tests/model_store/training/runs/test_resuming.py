"""Resumed runs: after a kill at any moment, with changes, and with more epochs after their end."""

from __future__ import annotations

import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.errors import CheckpointError, RecipeError
from model_store.training.loop import resume
from model_store.training.parents import find_parent
from model_store.training.runs.resuming import Changes, require_space
from model_store.training.runs.run import (
    CHECKPOINT_FILE,
    LOCK_FILE,
    MODEL_FILE,
    RUN_FILE,
    find_run,
    load_run,
    read_info,
)
from tests.model_store.training.helpers import RECIPE, RecordingReporter, same_weights, train_trial
from tests.support.training.class_folders import write_class_folders

TRAIN = """
import sys
from pathlib import Path
from tests.model_store.training.helpers import train_trial
train_trial(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_trial(data, tmp_path_factory.mktemp("finished_run")).run


def epochs(run: Path) -> list[int]:
    return [record["epoch"] for record in load_run(run).metrics if record["kind"] == "epoch"]


@pytest.mark.parametrize(
    "moment",
    [
        lambda home: home.glob("runs/*/" + RUN_FILE),
        pytest.param(lambda home: home.glob("runs/*/.checkpoint.safetensors.*"), marks=pytest.mark.slow),
        pytest.param(lambda home: home.glob("runs/*/.tmp*"), marks=pytest.mark.slow),
        lambda home: home.glob("runs/*/" + CHECKPOINT_FILE),
    ],
    ids=["created", "before a checkpoint is written", "writing tensors", "checkpoint written"],
)
def test_a_killed_run_resumes_to_the_same_bits(
    data: Path, tmp_path: Path, finished_run: Path, moment: Callable[[Path], list[Path]]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(data), str(tmp_path)])
    deadline = time.monotonic() + 60
    while not list(moment(tmp_path)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = find_run(tmp_path, "trial")
    assert resume(run).finished
    assert same_weights(run, finished_run)
    assert epochs(run) == [1, 2, 3]
    assert [file.name for file in run.glob(".*")] == [LOCK_FILE]


def test_files_of_a_killed_write_are_removed(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    (run / ".tmpAb12Cd").touch()  # of safetensors
    (run / ".checkpoint.safetensors.01234567").touch()
    assert resume(run).finished
    assert [file.name for file in run.glob(".*")] == [LOCK_FILE]
    assert stat.S_IMODE((run / MODEL_FILE).stat().st_mode) == stat.S_IMODE((run / RUN_FILE).stat().st_mode)


def test_a_fine_tuned_run_without_a_checkpoint_starts_again_from_its_parent(data: Path, tmp_path: Path) -> None:
    train_trial(data, tmp_path / "home", replace(RECIPE, epochs=1))
    home = tmp_path / "home"
    parent = find_parent(home, "trial")
    whole = train_trial(data, tmp_path / "whole", parent=parent).run
    stopped = train_trial(data, tmp_path / "stopped", reporter=RecordingReporter(2), parent=parent).run
    (stopped / CHECKPOINT_FILE).unlink()
    assert resume(stopped, find_parent=lambda name: find_parent(home, name)).finished
    assert same_weights(stopped, whole)


def test_a_finished_run_goes_on_for_more_epochs(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path).run
    before = load_run(run).network.state_dict()
    reporter = RecordingReporter(2)
    changes = Changes(settings=("epochs=6",))
    assert not resume(run, changes=changes, reporter=reporter, stop=reporter.stop).finished
    assert not (run / MODEL_FILE).exists()
    assert load_run(run).network.state_dict().keys() == before.keys()
    assert resume(run).finished
    assert epochs(run) == [1, 2, 3, 4, 5, 6]
    assert read_info(run).recipe == replace(RECIPE, epochs=6)
    assert not same_weights(run, train_trial(data, tmp_path / "other").run)
    assert resume(run, changes=changes).finished  # the same command again changes nothing
    assert epochs(run) == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_while_it_is_reopened_is_finished_again(data: Path, tmp_path: Path, finished_run: Path) -> None:
    run = train_trial(data, tmp_path).run
    reporter = RecordingReporter(1)
    resume(run, changes=Changes(settings=("epochs=6",)), reporter=reporter, stop=reporter.stop)
    for file in (RUN_FILE, "metrics.jsonl"):  # as if the process had been killed before it wrote the recipe
        (run / file).write_bytes((finished_run / file).read_bytes())
    assert resume(run).finished
    assert resume(run, changes=Changes(settings=("epochs=4",))).finished
    assert epochs(run) == [1, 2, 3, 4]


def test_settings_apply_to_the_recipe_of_the_run(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(5)).run
    assert resume(run, changes=Changes(settings=("epochs=2",))).finished
    assert read_info(run).recipe == replace(RECIPE, epochs=2)
    assert epochs(run) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (Changes(settings=("learning_rate=0.5",)), "learning_rate .* -> 0.5.*fc7 train --from"),
        (Changes(seed=4), "was started with --seed 0, which cannot change"),
        (Changes(settings=("epochs=1",)), "has finished 3 epochs, so epochs=1 is too few"),
        (Changes(replace(RECIPE, batch_size=3)), "batch_size 5 -> 3"),
    ],
)
def test_changes_that_cannot_be_applied_are_rejected(finished_run: Path, changes: Changes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resume(finished_run, changes=changes)
    with pytest.raises(RecipeError, match="Unknown key"):
        resume(finished_run, changes=Changes(settings=("epoch=5",)))


def test_the_folder_and_its_space_are_checked_before_the_images_are_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/runs cannot be written: Not a directory"):
        train_trial(data, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"has [\d,.]+ MB left, and the checkpoints of this net need"):
        require_space(tmp_path, 10**18)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_before_the_first_checkpoint_is_one_clear_error(data: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"runs.* cannot be written: .*Free some disk space"):
            train_trial(data, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_disk_that_is_full_at_a_checkpoint_names_the_command_to_continue(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    size = (run / CHECKPOINT_FILE).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=f"The previous one is kept.*fc7 train --resume --name {run.name}"):
            resume(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert resume(find_run(tmp_path, run.name)).finished
