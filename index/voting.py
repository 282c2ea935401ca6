"""Classify by the labels of the nearest indexed images: a distance-weighted k-nearest-neighbor vote.

A neighbor at the distance d has the weight 1 / d^2, as a share of the sum. On the demo photographs this is as good as
1 / d with many neighbors, and better with few labeled images.

Guarantees: only images with a usable label are neighbors. Labels that look alike vote for one class.
References: Dudani, "The Distance-Weighted k-Nearest-Neighbor Rule", 1976.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.filters import has_field, parse_field
from index.interface import ImageIndex
from index.labels import label_of, value_at
from index.records import Neighbour
from model_store.class_names import one_spelling

_LEAST_DISTANCE: Final = 1e-3  # of an identical image, which outweighs all others


@dataclass(frozen=True, slots=True)
class Evidence:
    """A neighbor that voted. label: as in `Votes`. weight: its share of all votes, from 0 to 1."""

    neighbour: Neighbour
    label: str
    weight: float


@dataclass(frozen=True, slots=True)
class Votes:
    """The result for one image. classes: (label, share of the votes), the largest first. evidence: nearest first."""

    classes: list[tuple[str, float]]
    evidence: list[Evidence]


def vote(
    index: ImageIndex,
    vectors: NDArray[np.float32],
    neighbours: int,
    field: str,
    *,
    known: Collection[str] = (),
    fingerprint: str | None = None,
) -> list[Votes]:
    """Return the votes of the nearest labeled images of each vector, float32 [n, 4096]; none if no image has a label.

    neighbours: how many vote; all if fewer have a label. field: of the labels. known: labels whose spelling is used.
    fingerprint: as in `ImageIndex.search`. Raises FilterError for a field name that is not valid, and as `search` does.
    """
    path = parse_field(field)
    labelled, wanted = has_field(path), neighbours
    while True:
        found = index.search(vectors, wanted, where=labelled, fingerprint=fingerprint)
        usable = [
            [(near, label) for near in nearest if (label := label_of(value_at(near.metadata, path))) is not None]
            for nearest in found
        ]
        if all(
            len(images) >= neighbours or len(nearest) < wanted for images, nearest in zip(usable, found, strict=True)
        ):
            return [_count(images[:neighbours], known) for images in usable]
        wanted *= 4  # some of the nearest have a list or an empty text as their label


def _count(images: Sequence[tuple[Neighbour, str]], known: Collection[str]) -> Votes:
    weights = [1 / max(near.distance, _LEAST_DISTANCE) ** 2 for near, _ in images]
    total = sum(weights)
    by_label: dict[str, float] = defaultdict(float)
    for (_, label), weight in zip(images, weights, strict=True):
        by_label[label] += weight / total
    spelling = one_spelling(by_label, known)
    classes: dict[str, float] = defaultdict(float)
    for label, share in by_label.items():
        classes[spelling[label]] += share
    evidence = [
        Evidence(near, spelling[label], weight / total) for (near, label), weight in zip(images, weights, strict=True)
    ]
    return Votes(sorted(classes.items(), key=lambda item: (-item[1], item[0])), evidence)
