"""Find near-duplicates: all pairs of vectors within a distance, nearest first.

Guarantees: every pair within the threshold is found (or the nearest `limit` of them), with its exact distance. A pair
is excluded only by a lower bound of its distance.
Out of scope: subquadratic time. The time grows with the square of the number of vectors, with a small factor.

The lower bound is the distance between projections on the axes of largest variance, with the length of the rest of each
vector as one more coordinate. Blocks whose first coordinates differ too much are not compared.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.search.searcher import View, ids_at, live_slots, rows_at

_SAMPLE = 2048
_AXES = 96
_BLOCK = 2048
_EXACT_BATCH = 512
Floats = NDArray[np.float32]
Pair = tuple[float, int, int]


def near_pairs(view: View, threshold: float, limit: int, stopped: Callable[[], bool] = lambda: False) -> list[Pair]:
    """Return (distance, vector id, vector id) of the nearest `limit` pairs at most `threshold` apart, nearest first.

    threshold: a Euclidean distance. stopped: called between blocks; once it returns True, the pairs found so far are
    returned.
    """
    slots = live_slots(view)
    if len(slots) < 2:
        return []
    points = _coordinates(view, slots)
    order = np.argsort(points[:, 0], kind="stable")
    points, slots = points[order], slots[order]
    lengths = np.einsum("ij,ij->i", points, points)
    slack = 1e-4 + 1e-5 * float(lengths.max())  # an upper bound of the rounding error of a squared float32 distance
    best = _Best(threshold, limit)
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for other in range(start, len(points), _BLOCK):
            if stopped():
                return best.pairs()
            if points[other, 0] - points[rows][-1, 0] > best.max_distance + slack:
                break
            columns = slice(other, other + _BLOCK)
            squared = lengths[rows, None] + lengths[None, columns] - 2 * (points[rows] @ points[columns].T)
            first, second = np.nonzero(squared <= best.max_distance**2 + slack)
            if other == start:
                above = first < second
                first, second = first[above], second[above]
            bounds = squared[first, second] - slack
            order = np.argsort(bounds, kind="stable")
            pairs = np.stack([slots[rows][first[order]], slots[columns][second[order]]])
            _refine(view, pairs, bounds[order], best)
    return best.pairs()


class _Best:
    """The nearest pairs so far. max_distance: a pair farther apart is not among the nearest."""

    def __init__(self, threshold: float, limit: int) -> None:
        self.max_distance, self._limit = threshold, limit
        self._heap: list[Pair] = []  # negated, because heapq keeps the smallest first

    def offer(self, distance: float, first: int, second: int) -> None:
        """Keep the pair if it is among the nearest."""
        if distance <= self.max_distance:
            low, high = sorted((first, second))
            heapq.heappush(self._heap, (-distance, -low, -high))
            if len(self._heap) > self._limit:
                heapq.heappop(self._heap)
            if len(self._heap) == self._limit:
                self.max_distance = -self._heap[0][0]

    def pairs(self) -> list[Pair]:
        """Return the pairs, nearest first."""
        return sorted((-distance, -low, -high) for distance, low, high in self._heap)


def _refine(view: View, pairs: NDArray[np.int64], bounds: Floats, best: _Best) -> None:
    """Offer candidate pairs (slots, int64 [2, n]; by ascending squared bound) with exact distances to `best`."""
    for start in range(0, len(bounds), _EXACT_BATCH):
        if bounds[start] > best.max_distance**2:
            return
        first, second = pairs[:, start : start + _EXACT_BATCH]
        difference = (_floats(view, first) - _floats(view, second)).astype(np.float64)
        distances = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        for pair in zip(distances.tolist(), ids_at(view, first).tolist(), ids_at(view, second).tolist(), strict=True):
            best.offer(*pair)


def _coordinates(view: View, slots: NDArray[np.int64]) -> Floats:
    """Return points, float32 [n, axes + 1], whose distances are lower bounds of the vectors' distances."""
    sample = _floats(view, slots[np.linspace(0, len(slots) - 1, min(_SAMPLE, len(slots))).astype(np.int64)])
    center = sample.mean(axis=0)
    _, vectors = np.linalg.eigh((sample - center) @ (sample - center).T)
    axes, _ = np.linalg.qr(((sample - center).T @ vectors[:, ::-1][:, :_AXES]).astype(np.float64))
    axes = axes.astype(np.float32)
    points = np.empty((len(slots), axes.shape[1] + 1), np.float32)
    for start in range(0, len(slots), _BLOCK):
        rows = _floats(view, slots[start : start + _BLOCK]) - center
        projected = rows @ axes
        # Computed from the remainder itself: a difference of squared lengths would lose small values to rounding.
        remainder = rows - projected @ axes.T
        points[start : start + _BLOCK, :-1] = projected
        points[start : start + _BLOCK, -1] = np.sqrt(np.einsum("ij,ij->i", remainder, remainder))
    return points


def _floats(view: View, slots: NDArray[np.int64]) -> Floats:
    return rows_at(view, slots).astype(np.float32)
