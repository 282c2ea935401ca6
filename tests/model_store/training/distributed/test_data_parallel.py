"""Two processes train one net: the same result as one process, stopping at the same step, and errors."""

from __future__ import annotations

import shutil
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
# What the paper does not have, and what fine-tuning adds: two frozen layers, and half of the steps for fc8 alone.
MODERN = """\
dropout = "inverted"
input_scale = 0.015625
epochs = 2
batch_size = 4
learning_rate = 0.02
schedule = "one-cycle"
update = "torch"
colour_noise = 0.0
precision = "float32"
frozen_layers = 2
head_share = 0.5
body_rate_factor = 0.5
smallest_crop = 0.4
colour_jitter = 0.2
label_smoothing = 0.1
mixup = 0.5
balance = 1.0
keep_best = true
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["data", "towers"])
def test_processes_fine_tune_with_mixup_frozen_layers_and_a_head_phase_as_one_does(
    data: Path, one_process_home: Path, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "modern.toml").write_text(MODERN)
    for split in ("train", "val"):
        shutil.copytree(data / split, tmp_path / "more" / split)
        shutil.copytree(data / split / "red", tmp_path / "more" / split / "pink")
    parent, towers = find_run(one_process_home, "one"), ["--towers"] if scheme == "towers" else []
    options = [
        *("--data", str(tmp_path / "more"), "--recipe", str(tmp_path / "modern.toml"), "--home", str(tmp_path)),
        *("--from", str(parent), "--experiment"),
    ]
    if towers:
        options += ["--from", str(parent_with_towers(data, tmp_path))]
    # The images do not fit the budget, so they are decoded again for each step.
    assert main([*options, "--name", "one", "--memory-budget", "1"]) == 0
    module = ["-m", "model_store.training.train"]
    run_together(2, [*module, *options, "--name", "two", "--memory-budget", "1", *towers])
    one, two = weights(tmp_path, "one"), weights(tmp_path, "two")
    check_close(two, one)
    before = read_tensors(parent / MODEL_FILE, WEIGHTS_PREFIX)
    if not towers:
        assert {name for name in before if torch.equal(two[name], before[name])} == {
            f"{layer}.{kind}" for layer in ("conv1", "conv2") for kind in ("weight", "bias")
        }


def parent_with_towers(data: Path, home: Path) -> Path:
    options = ["--set", "normalisation=towers", "--set", "width=0.03125", "--set", "epochs=1"]
    assert main([*arguments(data, home, "--name", "towers"), *options]) == 0
    return find_run(home, "towers")


def test_the_number_of_processes_must_divide_the_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"batch_size=128 is not divisible by 3 processes.*batch_size=126"):
        train(data, Recipe(), home=tmp_path, name="odd", resources=Resources(group=Group(world=3)))
    with pytest.raises(RecipeError, match=r"batch_size=2 is not divisible by 3 processes.*batch_size=3"):
        train(data, Recipe(batch_size=2), home=tmp_path, name="odd", resources=Resources(group=Group(world=3)))
    assert not (tmp_path / "runs").exists()
