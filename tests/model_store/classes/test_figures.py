"""Figures, intervals and baselines agree with plain counts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.classes.figures import FigureCounter, Figures, wilson_interval


def figures_of(truth: NDArray[np.int64], predicted: NDArray[np.int64], confidence: float = 0.8) -> Figures:
    classes = int(max(truth.max(), predicted.max())) + 1
    counter = FigureCounter(classes)
    counter.add(truth, predicted, np.full(len(truth), confidence))
    return counter.figures([str(index) for index in range(classes)])


def test_figures_agree_with_plain_counts() -> None:
    random = np.random.default_rng(0)
    truth = random.choice(5, 300, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    predicted = np.where(random.random(300) < 0.6, truth, random.integers(0, 5, 300))
    figures = figures_of(truth, predicted)
    assert figures.top1_accuracy == np.mean(truth == predicted)
    assert figures.majority_accuracy == np.bincount(truth).max() / 300
    recalls = [np.mean(predicted[truth == index] == index) for index in range(5)]
    precisions = [np.mean(truth[predicted == index] == index) for index in range(5)]
    assert figures.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert figures.macro_f1 == pytest.approx(
        np.mean([2 * p * r / (p + r) for p, r in zip(precisions, recalls, strict=True)])
    )
    for index, entry in enumerate(figures.per_class()):
        assert (entry.images, entry.label) == (np.sum(truth == index), str(index))
        assert entry.precision == pytest.approx(precisions[index])
        assert entry.recall == pytest.approx(recalls[index])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (7, 20, 0.1812, 0.5671), (195, 341, 0.5188, 0.6232)],
)
def test_wilson_intervals_are_those_of_tables(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_an_interval_contains_the_true_share_in_95_percent_of_repetitions() -> None:
    covered = []
    for share in (0.1, 0.2, 0.3, 0.4, 0.5):
        counts = np.random.default_rng(0).binomial(200, share, 1000)
        covered += [low <= share <= high for low, high in (wilson_interval(int(count), 200) for count in counts)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_the_calibration_error_is_the_weighted_difference_of_probability_and_accuracy() -> None:
    counter = FigureCounter(2)
    truth = np.array([0, 0, 0, 0, 1, 1])
    counter.add(truth, np.array([0, 0, 0, 1, 1, 0]), np.array([0.9, 0.9, 0.9, 0.9, 0.55, 0.55]))
    figures = counter.figures(["a", "b"])
    # Four images with 0.9, of which three are correct; two with 0.55, of which one is correct.
    assert figures.expected_calibration_error == pytest.approx((4 * 0.15 + 2 * 0.05) / 6)
    bins = [(entry.low, entry.high, entry.images, entry.accuracy) for entry in figures.reliability()]
    assert bins == [(0.5, 0.6, 2, 0.5), (0.8, 0.9, 4, 0.75)]


@pytest.mark.parametrize("confidence", [0.0, 1.0, np.nextafter(1.0, 2.0)])
def test_probabilities_at_the_ends_are_counted(confidence: float) -> None:
    assert figures_of(np.array([0, 1]), np.array([0, 1]), confidence).reliability()[0].images == 2


@pytest.mark.parametrize(("share", "better"), [(0.0, False), (0.1, False), (0.9, True)])
def test_only_a_net_that_learned_is_better_than_the_baseline(share: float, better: bool) -> None:
    random = np.random.default_rng(1)
    truth = random.choice(4, 80, p=[0.7, 0.1, 0.1, 0.1])
    predicted = np.where(random.random(80) < share, truth, 0)
    assert figures_of(truth, predicted).better_than_baseline == better


def test_a_net_that_finds_rare_classes_is_better_in_spite_of_its_accuracy() -> None:
    truth = np.array([0] * 190 + [1] * 10)
    predicted = np.array([1] * 30 + [0] * 160 + [1] * 9 + [0])  # recalls 84 % and 90 %
    figures = figures_of(truth, predicted)
    assert figures.top1_accuracy < figures.majority_accuracy
    assert figures.better_than_baseline


def test_classes_without_images_do_not_count_in_means() -> None:
    figures = figures_of(np.array([0, 0, 2]), np.array([0, 2, 2]))
    assert figures.balanced_accuracy == pytest.approx(0.75)
    middle = figures.per_class()[1]
    assert (middle.images, middle.precision, middle.recall, middle.f1) == (0, None, None, None)
    assert "75.0%" in figures.summary().replace("balanced accuracy ", "")


def test_counts_of_several_processes_are_added_up() -> None:
    counter = FigureCounter(2)
    counter.add(np.array([0, 1]), np.array([0, 0]), np.array([0.6, 0.7]))
    counter.sum_over(lambda values: [2 * value for value in values])
    figures = counter.figures(["a", "b"])
    assert figures.confusion.tolist() == [[2, 0], [2, 0]]
    assert figures.expected_calibration_error == pytest.approx((0.4 + 0.7) / 2)
