"""Classify by the labels of the nearest indexed images: a distance-weighted k-nearest-neighbor vote.

A neighbor at the distance d, whose class has n images, has the weight 1 / (d^4 sqrt(n)), as a share of the sum. Without
the second factor, a class with five images among thousands of others almost never wins; with 1 / n, it wins too often
(docs/teach.md has the figures).

Guarantees: only images with a usable label are neighbors. Labels that look alike vote for one class.
References: Dudani, "The Distance-Weighted k-Nearest-Neighbor Rule", 1976.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.fields import Scalar
from index.filters import has_field, has_value, parse_field
from index.interface import ImageIndex
from index.labels import label_of, value_at
from index.records import Neighbour
from model_store.classes.names import one_spelling

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
            return [_count(index, path, images[:neighbours], known) for images in usable]
        wanted *= 4  # some of the nearest have a list or an empty text as their label


def weights_of(distances: NDArray[np.floating], sizes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the weight of each neighbor, not yet as a share. sizes: the number of images of its class."""
    weights: NDArray[np.float64] = 1 / (
        np.maximum(distances, _LEAST_DISTANCE, dtype=np.float64) ** 4 * np.sqrt(np.maximum(sizes, 1))
    )
    return weights


def _count(
    index: ImageIndex, path: Sequence[str], images: Sequence[tuple[Neighbour, str]], known: Collection[str]
) -> Votes:
    spelling = one_spelling(Counter(label for _, label in images), known)
    sizes: dict[str, int] = defaultdict(int)
    for value, label in {(_scalar(near, path), label) for near, label in images}:
        sizes[spelling[label]] += index.count(has_value(path, value))
    weights: list[float] = weights_of(
        np.array([near.distance for near, _ in images]), np.array([sizes[spelling[label]] for _, label in images])
    ).tolist()
    total = sum(weights)
    classes: dict[str, float] = defaultdict(float)
    for (_, label), weight in zip(images, weights, strict=True):
        classes[spelling[label]] += weight / total
    evidence = [
        Evidence(near, spelling[label], weight / total) for (near, label), weight in zip(images, weights, strict=True)
    ]
    return Votes(sorted(classes.items(), key=lambda item: (-item[1], item[0])), evidence)


def _scalar(near: Neighbour, path: Sequence[str]) -> Scalar:
    """Return the only value in a field whose value is a label."""
    value = value_at(near.metadata, path)
    found: Scalar = value[0] if isinstance(value, list) else value
    return found
