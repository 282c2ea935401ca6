"""Best weights, early stopping, uneven classes, fine-tuning phases and the time limit of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.errors import RecipeError
from model_store.training.loop import resume
from model_store.training.parents import find_parent
from model_store.training.recipe import AUTO
from model_store.training.runs.resuming import Changes
from model_store.training.runs.run import BEST_FILE, load_run, read_metrics
from model_store.training.trainer import Result
from tests.model_store.training.helpers import RECIPE, RecordingReporter, final_weights, same_weights, train_trial
from tests.support.training.class_folders import write_class_folders

# The rate is so high that the net forgets what it has learned in the first epochs.
FORGETS = replace(RECIPE, schedule="constant", learning_rate=0.05, epochs=8, keep_best=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def forgetful(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, RecordingReporter]:
    """A finished run with FORGETS, and what was reported."""
    reporter = RecordingReporter()
    return train_trial(data, tmp_path_factory.mktemp("forgetful"), FORGETS, reporter), reporter


def validations(run: Path) -> list[tuple[float, float]]:
    return [(line["val_balanced_error"], line["val_loss"]) for line in read_metrics(run) if "val_loss" in line]


def test_the_weights_of_the_best_validation_are_kept(
    data: Path, tmp_path: Path, forgetful: tuple[Result, RecordingReporter]
) -> None:
    result, reporter = forgetful
    errors = validations(result.run)
    best = min(errors)
    assert best < errors[-1]
    epoch = errors.index(best) + 1
    assert any(f"those of epoch {epoch}" in note for note in reporter.notes)
    assert not (result.run / BEST_FILE).exists()
    shorter = train_trial(data, tmp_path / "shorter", replace(FORGETS, epochs=epoch)).run
    assert same_weights(result.run, shorter)
    assert result.figures is not None
    assert 1 - result.figures.balanced_accuracy == pytest.approx(best[0])
    again = RecordingReporter()
    repeated = resume(result.run, reporter=again).figures
    assert repeated is not None
    assert repeated.to_dict() == result.figures.to_dict()
    assert any(f"those of epoch {epoch}" in note for note in again.notes)


def test_a_resumed_run_keeps_the_same_best_weights(
    data: Path, tmp_path: Path, forgetful: tuple[Result, RecordingReporter]
) -> None:
    stopped = train_trial(data, tmp_path, FORGETS, RecordingReporter(18)).run
    assert resume(stopped).finished
    assert same_weights(stopped, forgetful[0].run)


def test_early_stopping_ends_a_run_that_does_not_improve(data: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    result = train_trial(data, tmp_path, replace(RECIPE, learning_rate=0, epochs=50, early_stop=3), reporter)
    assert len(validations(result.run)) == 4
    assert any("Stopped early" in note for note in reporter.notes)


def test_balancing_raises_the_recall_of_a_rare_class(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", train=16, val=6)
    for folder in ("red", "green"):
        for number in range(2, 16):
            (data / "train" / folder / f"{number}.png").unlink()
    recalls = {}
    for balance in (0.0, 1.0):
        recipe = replace(RECIPE, balance=balance, epochs=6, learning_rate=0.01)
        figures = train_trial(data, tmp_path / str(balance), recipe).figures
        assert figures is not None
        recalls[balance] = figures.balanced_accuracy
    assert recalls[1.0] > recalls[0.0]


def test_balancing_changes_nothing_for_even_classes(data: Path, tmp_path: Path) -> None:
    plain = final_weights(train_trial(data, tmp_path / "plain", replace(RECIPE, epochs=1)).run)
    even = final_weights(train_trial(data, tmp_path / "even", replace(RECIPE, epochs=1, balance=1.0)).run)
    for name, weight in plain.items():
        torch.testing.assert_close(weight, even[name], rtol=1e-4, atol=1e-6)


def test_frozen_layers_and_the_head_phase_train_only_what_they_name(data: Path, tmp_path: Path) -> None:
    parent_run = train_trial(data, tmp_path, RECIPE).run
    shutil.copytree(data / "train" / "red", tmp_path / "more" / "train" / "pink")
    for folder in ("train", "val"):
        shutil.copytree(data / folder, tmp_path / "more" / folder, dirs_exist_ok=True)
    shutil.copytree(data / "val" / "red", tmp_path / "more" / "val" / "pink")
    parent = find_parent(tmp_path, str(parent_run))
    changed = {}
    for head_share in (0.5, 1.0):
        recipe = replace(RECIPE, frozen_layers=2, head_share=head_share)
        run = train_trial(tmp_path / "more", tmp_path / f"child-{head_share}", recipe, parent=parent).run
        weights = final_weights(run)
        changed[head_share] = {
            name.partition(".")[0]
            for name, value in weights.items()
            if name.partition(".")[0] != "fc8" and not torch.equal(value, parent.weights[name])
        }
    assert changed[1.0] == set()
    assert changed[0.5] == {"conv3", "conv4", "conv5", "fc6", "fc7"}


def test_a_time_limit_chooses_the_epochs_and_a_run_resumes_with_them(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=AUTO, epoch_images=AUTO, learning_rate=1e-4)  # stable for any number of epochs
    reporter = RecordingReporter(2)
    stopped = train_trial(data, tmp_path, recipe, reporter, minutes=0.02)
    info = load_run(stopped.run).info
    assert not info.recipe.open_values()
    assert any(f"{info.recipe.epochs} epoch" in note for note in reporter.notes)
    fixed = replace(recipe, epochs=info.recipe.epochs, epoch_images=info.recipe.epoch_images)
    again = train_trial(data, tmp_path / "again", fixed).run
    assert resume(stopped.run, changes=Changes(recipe)).finished
    assert same_weights(stopped.run, again)  # the measurement of the speed does not change the result


def test_a_time_limit_with_fixed_epochs_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--set epochs=auto"):
        train_trial(data, tmp_path, RECIPE, minutes=1)
    assert not (tmp_path / "runs").exists()


def test_a_part_of_the_images_can_be_an_epoch(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, replace(RECIPE, epoch_images=12)).run
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "epoch"] == [3, 6, 9]
