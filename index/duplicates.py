"""Groups of near-duplicate images, and which image of a group to keep.

The image to keep is the one with the most pixels; then the one with the largest file; then the oldest one; then the
first by key.

Guarantees: every group names an image to keep that exists.
Out of scope: finding the groups (see index/search/duplicates.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from index.records import time_of
from index.search.duplicates import NearGroups


@dataclass(frozen=True, slots=True)
class NearImage:
    """An image of a group. size: of the file, in bytes. distance: from the image to keep, as in `Neighbour`."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    added: datetime
    distance: float = 0.0

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Return an image. row: these fields in order, without the distance; `added` is as in `records.now`."""
        *fields, added_us = row
        return cls(*fields, added=time_of(added_us))


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images linked by pairs that are near-duplicates. keep: the best of them. others: nearest to it first.

    size: number of images, with the one to keep.
    """

    keep: NearImage
    size: int
    others: list[NearImage]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Groups of near-duplicates, largest first. complete: nothing is missing. note: why and how to go on, or ""."""

    groups: list[DuplicateGroup]
    complete: bool
    note: str


def rank(image: NearImage) -> tuple[int, int, datetime, str]:
    """Return the sort key of an image in its group: the smallest one is kept."""
    return -image.width * image.height, -image.size, image.added, image.key


def describe_groups(found: NearGroups, images: Mapping[int, NearImage]) -> Duplicates:
    """Replace vector ids by images. images: of the vectors that still exist."""
    groups = []
    for group in found.groups:
        others = [replace(images[number], distance=distance) for distance, number in group.others if number in images]
        deleted = len(group.others) - len(others)
        if group.keep in images and others:
            groups.append(DuplicateGroup(images[group.keep], group.size - deleted, others))
    note = ""
    if found.stopped:
        note = (
            "The search was stopped at its time limit, so groups may be missing or split. Use a filter or a smaller "
            "threshold, or run fc7 index duplicates, which has no time limit."
        )
    elif found.shortened:
        note = "More groups or images were found than are listed. Raise the limit, or delete duplicates and repeat."
    return Duplicates(groups, not (found.stopped or found.shortened), note)


def redundant_pairs(groups: Sequence[DuplicateGroup], threshold: float) -> list[tuple[NearImage, NearImage]]:
    """Return (image to delete, image to keep) for each image that is at most `threshold` from the one to keep.

    A group is linked by pairs, so its other images may look quite different from the one to keep. They stay.
    """
    return [(other, group.keep) for group in groups for other in group.others if other.distance <= threshold]
