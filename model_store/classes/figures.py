"""The figures of a classifier on labeled images, with their baselines and confidence intervals.

Guarantees: every figure follows from counts of images and from the confidence of each prediction. Classes without
images do not count in means over classes. Intervals cover the true value in about 95 % of repetitions.
Out of scope: running a net (evaluate.py, trainer.py), deciding what is done with a weak model (model_store/store.py).
References: Wilson 1927 (interval of a share); Guo et al. 2017 (expected calibration error, ten bins).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 10  # of confidence, each 0.1 wide
_Z: Final = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The results for one class. `images`: how many were seen. None: not defined (no images, or never predicted)."""

    label: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The predictions whose probability is in (`low`, `high`]: how many, mean probability, share of correct ones."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What is counted on labeled images.

    confusion: int64 [classes, classes]; row i, column j is the number of images of class i that were classified as j.
    calibration: float64 [10, 3]; for each bin of the best class's probability: images, sum of probabilities, correct.
    """

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    calibration: NDArray[np.float64]

    @property
    def images(self) -> int:
        """The number of classified images."""
        return int(self.confusion.sum())

    @property
    def top1_accuracy(self) -> float:
        """Share of the images (0 to 1) whose most probable class is their label."""
        return float(np.trace(self.confusion)) / self.images

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % interval of the top-1 accuracy (Wilson's)."""
        return wilson_interval(int(np.trace(self.confusion)), self.images)

    @property
    def majority_accuracy(self) -> float:
        """The top-1 accuracy of always predicting the most frequent class, as a baseline."""
        return float(self.confusion.sum(axis=1).max()) / self.images

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall over the classes. Always predicting the same class gives 1 / classes."""
        return float(self._recalls().mean())

    @property
    def balanced_interval(self) -> tuple[float, float]:
        """The 95 % interval of the balanced accuracy: normal, with two correct and two wrong images added per class."""
        counts = self.confusion.sum(axis=1)
        counts, correct = counts[counts > 0], np.diag(self.confusion)[counts > 0]
        shares = (correct + 2) / (counts + 4)
        deviation = math.sqrt(float((shares * (1 - shares) / (counts + 4)).sum())) / len(counts)
        mean = self.balanced_accuracy
        return max(0.0, mean - _Z * deviation), min(1.0, mean + _Z * deviation)

    @property
    def macro_f1(self) -> float:
        """The mean F1 score over the classes that have images."""
        return float(np.mean([entry.f1 or 0.0 for entry in self.per_class() if entry.images]))

    @property
    def expected_calibration_error(self) -> float:
        """The mean difference between probability and share of correct predictions, weighted by images (ten bins)."""
        images, confidence, correct = self.calibration.T
        return float(np.abs(confidence - correct).sum() / images.sum())

    @property
    def better_than_baseline(self) -> bool:
        """Whether the net is better than a constant prediction, by the lower ends of the intervals.

        Either measure is enough: on uneven classes, a useful net can have a lower top-1 accuracy than the majority
        class, but not a balanced accuracy of 1 / classes.
        """
        classes = int((self.confusion.sum(axis=1) > 0).sum())
        return self.top1_interval[0] > self.majority_accuracy or self.balanced_interval[0] > 1 / classes

    def per_class(self) -> list[ClassFigures]:
        """Return precision, recall and F1 of every class, in the order of the labels."""
        results = []
        for index, label in enumerate(self.labels):
            correct = int(self.confusion[index, index])
            images, predicted = int(self.confusion[index].sum()), int(self.confusion[:, index].sum())
            results.append(
                ClassFigures(
                    label,
                    images,
                    precision=correct / predicted if predicted else None,
                    recall=correct / images if images else None,
                    f1=2 * correct / (images + predicted) if images + predicted else None,
                )
            )
        return results

    def reliability(self) -> list[ReliabilityBin]:
        """Return the bins of confidence that have images, lowest first."""
        return [
            ReliabilityBin(number / BINS, (number + 1) / BINS, int(images), confidence / images, correct / images)
            for number, (images, confidence, correct) in enumerate(self.calibration.tolist())
            if images
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types. Shares are from 0 to 1; an interval is [low, high] with 95 % confidence."""
        low, high = self.top1_interval
        return {
            "top1_error": 1 - self.top1_accuracy,
            "top1_error_interval": [1 - high, 1 - low],
            "majority_class_error": 1 - self.majority_accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_interval": list(self.balanced_interval),
            "macro_f1": self.macro_f1,
            "expected_calibration_error": self.expected_calibration_error,
            "better_than_baseline": self.better_than_baseline,
            "per_class": [asdict(entry) for entry in self.per_class()],
            "reliability": [asdict(entry) for entry in self.reliability()],
        }

    def summary(self) -> str:
        """Return the main figures as one line of text."""
        low, high = self.top1_interval
        balanced_low, balanced_high = self.balanced_interval
        return (
            f"accuracy {self.top1_accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}, {self.images:,} images; "
            f"always predicting the most frequent class: {self.majority_accuracy:.1%}), "
            f"balanced accuracy {self.balanced_accuracy:.1%} ({balanced_low:.1%} to {balanced_high:.1%}), "
            f"macro F1 {self.macro_f1:.2f}, calibration error {self.expected_calibration_error:.1%}"
        )

    def _recalls(self) -> NDArray[np.float64]:
        counts = self.confusion.sum(axis=1)
        recalls: NDArray[np.float64] = np.diag(self.confusion)[counts > 0] / counts[counts > 0]
        return recalls


class FigureCounter:
    """Counts the predictions of a net, batch by batch."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)
        self.calibration = np.zeros((BINS, 3), np.float64)

    def add(self, truth: NDArray[np.int64], predicted: NDArray[np.int64], confidence: NDArray[np.floating]) -> None:
        """Count n images. truth, predicted: class indices, [n].

        confidence: probability of the predicted class, [n]; NaN counts as 0.
        """
        confidence = np.nan_to_num(confidence)
        np.add.at(self.confusion, (truth, predicted), 1)
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        np.add.at(self.calibration, bins, np.stack([np.ones(len(truth)), confidence, truth == predicted], axis=1))

    def sum_over(self, add_up: Callable[[Sequence[float]], list[float]]) -> None:
        """Replace the counts by their sums over several processes, which `add_up` returns for a list of numbers."""
        sums = np.array(add_up([*self.confusion.ravel().tolist(), *self.calibration.ravel().tolist()]))
        cells = self.confusion.size
        self.confusion = sums[:cells].round().astype(np.int64).reshape(self.confusion.shape)
        self.calibration = sums[cells:].reshape(self.calibration.shape)

    def figures(self, labels: Sequence[str]) -> Figures:
        """Return the figures of all images counted so far."""
        return Figures(tuple(labels), self.confusion, self.calibration)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, from `successes` of `trials` (at least one)."""
    share, z2 = successes / trials, _Z**2
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    margin = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, center - margin), min(1.0, center + margin)
