"""Choose the images whose labels would teach most: the uncertain ones, and those unlike all labeled ones.

Each unlabeled image has a weight: how undecided its labeled neighbors are. Images are then chosen one after the other,
each time the one that brings the weighted rest nearest to a labeled or chosen image (greedy facility location). A
second picture of one scene therefore gains almost nothing, and an outlier that resembles no other image gains little.

Guarantees: the result depends only on the vectors, their order and the labels. At any moment `stopped` can end the
choice; the images chosen until then are returned, and they are the same as without it.
Out of scope: samples of large indexes (index/suggestions.py). Distances are those of projections on the axes of largest
variance, not of the whole vectors.
References: Krause, Golovin: Submodular Function Maximization, 2014 (lazy greedy); Mirzasoleiman et al., 2013.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.search.product_code import principal_axes

AXES: Final = 96
_FIT_SAMPLE: Final = 1024
_NEIGHBORS: Final = 10
_BLOCK: Final = 512
_AGAIN: Final = 32  # gains computed again in one step
# An image whose neighbors all have one label has this weight, against 1 more for two equal shares. With less, noisy
# labels attract the choice (docs/labelling.md has figures).
_BASE_WEIGHT: Final = 1.0
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vote:
    """How the labeled neighbors of an image vote: the largest shares, largest first, and the nearest one's distance."""

    shares: list[tuple[str, float]]
    distance: float

    @property
    def margin(self) -> float:
        """The share of the first label minus that of the second; 1 if all neighbors have the same label."""
        return self.shares[0][1] - (self.shares[1][1] if len(self.shares) > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen image. row: its row. gain: relative to the first one's. vote: None without labeled images.

    covers: the number of unlabeled images that are nearer to it than to every labeled or previously chosen image.
    """

    row: int
    gain: float
    covers: int
    vote: Vote | None


def choose(
    unlabeled: NDArray[np.float16],
    labeled: NDArray[np.float16],
    labels: Sequence[str],
    count: int,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Choice]:
    """Return up to `count` rows of `unlabeled`, float16 [n, 4096], the most useful first.

    labels: of the rows of `labeled`, float16 [m, 4096]. stopped: called repeatedly; once it returns True, the choice
    ends.
    """
    if not len(unlabeled):
        return []
    points, known = _project(unlabeled, labeled)
    if len(known):
        shares, names, nearest = _votes(points, known, labels)
        weights = np.float32(1 + _BASE_WEIGHT) - _margins(shares)
    else:
        shares, names = np.empty((len(points), 0), np.float32), []
        nearest = np.full(len(points), 2 * np.sqrt((points**2).sum(1).max()), np.float32)
        weights = np.ones(len(points), np.float32)
    chosen = _greedy(points, weights, nearest.copy(), count, stopped)
    first = chosen[0][1] if chosen else 0.0
    return [
        Choice(row, gain / first if first > 0 else 0.0, covers, _vote(shares[row], names, float(nearest[row])))
        for row, gain, covers in chosen
    ]


def _project(unlabeled: NDArray[np.float16], labeled: NDArray[np.float16]) -> tuple[Floats, Floats]:
    """Return both sets on the axes of largest variance of the unlabeled images, float32 [n, axes] and [m, axes]."""
    rng = np.random.default_rng(0)
    sample = unlabeled[np.sort(rng.permutation(len(unlabeled))[:_FIT_SAMPLE])].astype(np.float32)
    mean = sample.mean(axis=0)
    axes = principal_axes(sample - mean, min(AXES, len(sample)))

    def project(rows: NDArray[np.float16]) -> Floats:
        parts = [(rows[at : at + _BLOCK].astype(np.float32) - mean) @ axes for at in range(0, len(rows), _BLOCK)]
        return np.concatenate([np.empty((0, axes.shape[1]), np.float32), *parts])

    return project(unlabeled), project(labeled)


def _distances(left: Floats, right: Floats) -> Floats:
    squared = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * (left @ right.T)
    distances: Floats = np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
    return distances


def _votes(points: Floats, known: Floats, labels: Sequence[str]) -> tuple[Floats, list[str], Floats]:
    """Return the share of each label among an image's labeled neighbors, the labels, and the nearest one's distance."""
    names, numbers = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    shares = np.zeros((len(points), len(names)), np.float32)
    nearest = np.empty(len(points), np.float32)
    count = min(_NEIGHBORS, len(known))
    for start in range(0, len(points), _BLOCK):
        distances = _distances(points[start : start + _BLOCK], known)
        order = np.argpartition(distances, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(distances, order, axis=1)
        nearest[start : start + _BLOCK] = near.min(axis=1)
        weights = 1 / np.maximum(near, np.float32(1e-3) * max(float(near.max()), 1e-6))
        rows = np.arange(start, start + len(near))[:, None]
        np.add.at(shares, (rows, numbers[order]), weights)
    return shares / shares.sum(axis=1, keepdims=True), names.tolist(), nearest


def _margins(shares: Floats) -> Floats:
    if shares.shape[1] < 2:
        return np.ones(len(shares), np.float32)
    best = np.partition(shares, -2, axis=1)[:, -2:]
    margins: Floats = best[:, 1] - best[:, 0]
    return margins


def _vote(shares: Floats, names: Sequence[str], distance: float) -> Vote | None:
    best = [int(number) for number in np.argsort(-shares, kind="stable")[:3] if shares[number] > 0]
    return Vote([(names[number], float(shares[number])) for number in best], distance) if best else None


def _greedy(
    points: Floats, weights: Floats, current: Floats, count: int, stopped: Callable[[], bool]
) -> list[tuple[int, float, int]]:
    """Return (row, gain, images covered) of each chosen row. current: distance of each to the nearest known image."""
    lengths = (points**2).sum(1)

    def nearer(rows: slice | list[int]) -> Floats:
        """Return by how much each of these rows would bring each image nearer, float32 [rows, n]."""
        distances = lengths[rows, None] + lengths - 2 * (points[rows] @ points.T)
        np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        gained: Floats = np.maximum(current - distances, 0, out=distances)
        return gained

    heap: list[tuple[float, int, int]] = []  # (-gain, row, number of rows chosen when the gain was computed)
    for start in range(0, len(points), _BLOCK):
        if stopped():
            return []
        gains = nearer(slice(start, start + _BLOCK)) @ weights
        heap += [(-gain, start + row, 0) for row, gain in enumerate(gains.tolist())]
    heapq.heapify(heap)
    chosen: list[tuple[int, float, int]] = []
    while heap and len(chosen) < count and not stopped():
        if heap[0][2] == len(chosen):
            negative, row, _ = heapq.heappop(heap)
            gain = nearer([row])[0]
            chosen.append((row, -negative, int((gain > 0).sum())))
            current -= gain
            continue
        # Gains can only have become smaller. Several are computed again at once, because the first is rarely enough.
        rows = [heapq.heappop(heap)[1] for _ in range(min(_AGAIN, len(heap)))]
        for row, new in zip(rows, (nearer(rows) @ weights).tolist(), strict=True):
            heapq.heappush(heap, (-new, row, len(chosen)))
    return chosen
