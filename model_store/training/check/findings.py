"""What a check of a data set found.

Guarantees: `Report.to_dict` contains everything, in JSON types. Pictures are named by split, class and path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_store.image_files import Skipped
from model_store.training.data.image_file import ImageFile


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
    """wrong: the suspected labels, most suspicious first. ranking: the first fifth of all judged labels, in the same
    order. judged: how many labels were compared with a classifier's answer. accuracy: the share of them that it agrees
    with, out of sample; None if there are too few pictures.
    """

    wrong: tuple[WrongLabel, ...]
    ranking: tuple[WrongLabel, ...]
    judged: int
    accuracy: float | None


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
            "likely_wrong_labels": [item.to_dict() for item in self.labels.wrong],
            "label_ranking": [item.picture.image.name for item in self.labels.ranking],
            "outliers": [item.to_dict() for item in self.outliers],
            "small": [picture.to_dict() for picture in self.small],
        }
