"""What a check of a data set found.

Guarantees: `Report.to_dict` contains everything, in JSON types. Pictures are named by split, class and path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from model_store.classes.figures import wilson_interval
from model_store.image_files import Skipped
from model_store.training.data.image_file import ImageFile

LEAST_PICTURES: Final = 5  # of a class, for its labels to be judged
# A classifier can judge labels if it closes this share of the distance between the most frequent class and 100 %. Of
# 5 % exchanged labels, classifiers below it had 19 to 26 % in the first 5 % of the ranking, and one above it had 60 %.
_SKILL: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Picture:
    """A readable picture of the data set."""

    image: ImageFile
    split: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"path": self.image.name, "label": self.image.label, "split": self.split}


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures that are the same: byte for byte (exact), or nearly."""

    pictures: tuple[Picture, ...]
    exact: bool

    @property
    def leaks(self) -> bool:
        """Whether the pictures are in different splits, so that the validation error is too low."""
        return len({picture.split for picture in self.pictures}) > 1

    @property
    def conflicts(self) -> bool:
        """Whether the pictures have different labels, so that one of them is wrong."""
        return len({picture.image.label for picture in self.pictures}) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "exact": self.exact,
            "leaks": self.leaks,
            "conflicts": self.conflicts,
            "pictures": [picture.to_dict() for picture in self.pictures],
        }


@dataclass(frozen=True, slots=True)
class WrongLabel:
    """A picture whose label is likely wrong. own, other: out-of-sample probabilities of label and `suggested`."""

    picture: Picture
    suggested: str
    own: float
    other: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        probabilities = {"probability": round(self.own, 4), "suggested_probability": round(self.other, 4)}
        return self.picture.to_dict() | {"suggested": self.suggested} | probabilities


@dataclass(frozen=True, slots=True)
class JudgedLabels:
    """What a classifier says about the labels, out of sample.

    wrong: the suspected labels, most suspicious first, at most a twentieth of all; empty if `reliable` is False.
    ranking: the first fifth of all judged labels, in the same order. judged: how many labels were compared with the
    classifier's answer; 0 if there are too few pictures. correct: how many of these it agrees with. majority: how many
    of these belong to the most frequent class.
    """

    wrong: tuple[WrongLabel, ...] = ()
    ranking: tuple[WrongLabel, ...] = ()
    judged: int = 0
    correct: int = 0
    majority: int = 0

    @property
    def accuracy(self) -> float | None:
        """The share of the judged labels that the classifier agrees with; None without judged labels."""
        return self.correct / self.judged if self.judged else None

    @property
    def baseline(self) -> float:
        """The share of the judged labels that belong to the most frequent class; 0 without judged labels."""
        return self.majority / self.judged if self.judged else 0.0

    @property
    def required(self) -> float:
        """The least accuracy with which a classifier can judge labels."""
        return self.baseline + _SKILL * (1 - self.baseline)

    @property
    def reliable(self) -> bool:
        """Whether the classifier is good enough to judge labels, by the lower end of its 95 % interval."""
        return self.judged > 0 and wilson_interval(self.correct, self.judged)[0] >= self.required


@dataclass(frozen=True, slots=True)
class Outlier:
    """A picture unlike the others. ratio: its mean distance to its nearest pictures, relative to the median of all."""

    picture: Picture
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return self.picture.to_dict() | {"ratio": round(self.ratio, 3)}


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    counts: by split, the number of readable pictures of each class. skipped: files that are not used. problems: why the
    data set cannot be used for training. notes: for the user. features: what pictures were compared by, such as "fc7 of
    solar:1". groups: copies and near-identical pictures. outliers: the farthest first. small: pictures with a side of a
    few pixels.
    """

    source: str
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    skipped: tuple[Skipped, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    features: str
    groups: tuple[Group, ...]
    labels: JudgedLabels
    outliers: tuple[Outlier, ...]
    small: tuple[Picture, ...]

    @property
    def images(self) -> int:
        """The number of readable pictures."""
        return sum(sum(counts.values()) for counts in self.counts.values())

    def select(self, *, exact: bool | None = None, leaks: bool = False, conflicts: bool = False) -> Sequence[Group]:
        """Return the groups of a kind."""
        return [
            group
            for group in self.groups
            if (exact is None or group.exact is exact)
            and (group.leaks or not leaks)
            and (group.conflicts or not conflicts)
        ]

    @property
    def labels_note(self) -> str | None:
        """Why the labels cannot be judged, and what to do, as sentences for the user; None if they can."""
        labels = self.labels
        if labels.reliable:
            return None
        if not labels.judged:
            return (
                "Labels cannot be judged, because that requires at least two classes with at least "
                f"{LEAST_PICTURES} pictures each."
            )
        return (
            f"Labels cannot be judged: a classifier on {self.features} agrees with {labels.accuracy:.0%} of them, "
            f"always predicting the most frequent class with {labels.baseline:.0%}, and {labels.required:.0%} is "
            "required, with a margin for chance. Repeat the check with a model that knows such pictures: --model NAME "
            "after fc7 train and fc7 export, or after fc7 import torchvision --download."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "source": self.source,
            "images": self.images,
            "features": self.features,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "classes": {label: {split: found[label] for split, found in self.counts.items()} for label in self.classes},
            "skipped": [item.to_dict() for item in self.skipped],
            "groups": [group.to_dict() for group in self.groups],
            "judged_labels": self.labels.judged,
            "label_accuracy": self.labels.accuracy,
            "label_accuracy_required": self.labels.required if self.labels.judged else None,
            "labels_note": self.labels_note,
            "likely_wrong_labels": [item.to_dict() for item in self.labels.wrong],
            "label_ranking": [item.picture.image.name for item in self.labels.ranking],
            "outliers": [item.to_dict() for item in self.outliers],
            "small": [picture.to_dict() for picture in self.small],
        }
