"""The warning about a loss that does not decrease."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_store.training.recipe import Recipe
from model_store.training.recipes.plateau_warning import PlateauDetector
from tests.model_store.training.helpers import RECIPE, RecordingReporter, train_trial
from tests.support.training.class_folders import write_class_folders


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


def test_a_loss_on_the_plateau_causes_one_warning_with_a_likely_cause(data: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    train_trial(data, tmp_path, replace(RECIPE, initialisation="paper", dropout="paper", flat_loss_steps=6), reporter)
    (warning,) = reporter.warnings
    assert "after 6 steps" in warning
    assert "ln(3) = 1.099" in warning
    assert "--recipe small" in warning


def test_a_run_that_ends_on_the_plateau_before_the_step_of_the_check_causes_the_warning(
    data: Path, tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    train_trial(data, tmp_path, replace(RECIPE, initialisation="paper", dropout="paper"), reporter)
    (warning,) = reporter.warnings
    assert "after 12 steps" in warning


def test_a_short_run_that_learns_causes_no_warning(data: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    train_trial(data, tmp_path, replace(RECIPE, epochs=12), reporter)
    assert not reporter.warnings


def test_a_decreasing_loss_causes_no_warning() -> None:
    counts = np.array([90, 5, 5])
    recipe = replace(RECIPE, flat_loss_steps=4)
    chance = 0.394  # the entropy of .9, .05, .05, which is far below ln(3)
    flat, falling = PlateauDetector(counts, recipe), PlateauDetector(counts, recipe)
    assert [flat.after_step(chance) is not None for _ in range(6)] == [False, False, False, True, False, False]
    assert [falling.after_step(loss) for loss in (1.1, 0.4, 0.3, 0.2, 0.2)] == [None] * 5


def test_a_short_run_with_good_initial_weights_needs_more_epochs() -> None:
    detector = PlateauDetector(np.array([5, 5]), replace(RECIPE, flat_loss_steps=100))
    assert [detector.after_step(0.7) for _ in range(7)] == [None] * 7
    assert "too short. Try more epochs" in str(detector.at_end(7))
    assert detector.at_end(100) is None


@pytest.mark.parametrize(
    ("recipe", "fix"),
    [
        (replace(RECIPE, learning_rate=1e-5), "learning_rate=0.0001"),
        (replace(RECIPE, learning_rate=0.5), "learning_rate=0.05"),
    ],
)
def test_the_warning_suggests_another_learning_rate(recipe: Recipe, fix: str) -> None:
    detector = PlateauDetector(np.array([1, 1]), replace(recipe, flat_loss_steps=1))
    assert fix in str(detector.after_step(0.7))


def test_the_chance_level_includes_label_smoothing() -> None:
    recipe = Recipe(label_smoothing=0.5, flat_loss_steps=2, initialisation="he")
    counts = np.array([98, 1, 1])
    smoothed = 0.5 * counts / 100 + 0.5 / 3
    chance = float(-(smoothed * np.log(smoothed)).sum())
    learning = PlateauDetector(counts, recipe)
    assert [learning.after_step(0.9 * chance) for _ in range(2)] == [None, None]
    flat = PlateauDetector(counts, recipe)
    assert flat.after_step(chance) is None
    assert flat.after_step(chance) is not None
