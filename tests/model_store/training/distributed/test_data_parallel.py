"""Two processes train one net: the same result as one process, stopping at the same step, and errors."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from model_store.errors import RecipeError
from model_store.training.distributed.group import Group
from model_store.training.loop import Resources, train
from model_store.training.recipe import Recipe
from model_store.training.runs.run import (
    CHECKPOINT_FILE,
    MODEL_FILE,
    WEIGHTS_PREFIX,
    find_run,
    read_info,
    read_metrics,
    read_tensors,
)
from model_store.training.train import main
from tests.support.processes import run_together, start_together
from tests.support.training.class_folders import write_class_folders

# 21 images in batches of 4: six steps per epoch. The last batch is a single image, so one process has none.
TRIAL = """\
width = 0.015625
input_scale = 0.015625
dropout = "{dropout}"
initialisation = "he"
epochs = 3
batch_size = 4
learning_rate = 0.02
schedule = "constant"
colour_noise = 0.1
precision = "float32"
"""
TIMED = ("kind", "seconds", "images_per_second", "wait_share")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distributed")
    (root / "paper.toml").write_text(TRIAL.format(dropout="paper"))
    return write_class_folders(root / "data", train=7, val=3)


def arguments(data: Path, home: Path, *more: str) -> list[str]:
    return [
        "--data",
        str(data),
        "--recipe",
        str(data.parent / "paper.toml"),
        "--home",
        str(home),
        "--experiment",
        *more,
    ]


def run_two_processes(data: Path, home: Path, *more: str, code: int = 0) -> list[str]:
    module = ["-m", "model_store.training.train"]
    return run_together(2, [*module, *arguments(data, home, *more)], code)


def weights(home: Path, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(find_run(home, name) / MODEL_FILE, WEIGHTS_PREFIX)


def check_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = float((found[name] - value).abs().max() / value.abs().max())
        assert difference < 1e-5, (name, difference)


@pytest.fixture(scope="module")
def one_process_home(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of a run with one process."""
    home = tmp_path_factory.mktemp("one_process_home")
    assert main(arguments(data, home, "--name", "one")) == 0
    return home


def test_two_processes_give_the_result_of_one_process(data: Path, one_process_home: Path, tmp_path: Path) -> None:
    first, second = run_two_processes(data, tmp_path, "--name", "two")
    assert "Finished" in first
    assert second == ""  # only the first process prints
    one, two = weights(one_process_home, "one"), weights(tmp_path, "two")
    check_close(two, one)
    for own, other in zip(
        read_metrics(find_run(one_process_home, "one")), read_metrics(find_run(tmp_path, "two")), strict=True
    ):
        assert {key: value for key, value in own.items() if key not in TIMED} == pytest.approx(
            {key: value for key, value in other.items() if key not in TIMED}, rel=1e-4
        )
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert read_info(find_run(tmp_path, "two")).versions["processes"] == "2"


def test_two_processes_stop_together_and_resume_to_the_same_result(
    data: Path, one_process_home: Path, tmp_path: Path
) -> None:
    parts = ("--name", "parts")
    started = start_together(2, ["-m", "model_store.training.train", *arguments(data, tmp_path, *parts)])
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("runs/parts-*/" + CHECKPOINT_FILE)) and time.monotonic() < deadline:
        time.sleep(0.01)
    started[1].send_signal(signal.SIGINT)  # the process that does not print; the other one must stop too
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [130, 130], outputs
    assert not (find_run(tmp_path, "parts") / MODEL_FILE).exists()
    run_two_processes(data, tmp_path, *parts, "--resume")
    check_close(weights(tmp_path, "parts"), weights(one_process_home, "one"))


def test_the_number_of_processes_must_divide_the_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"batch_size=128 is not divisible by 3 processes.*batch_size=126"):
        train(data, Recipe(), home=tmp_path, name="odd", resources=Resources(group=Group(world=3)))
    with pytest.raises(RecipeError, match=r"batch_size=2 is not divisible by 3 processes.*batch_size=3"):
        train(data, Recipe(batch_size=2), home=tmp_path, name="odd", resources=Resources(group=Group(world=3)))
    assert not (tmp_path / "runs").exists()
