"""Which vectors are nearly the same: all pairs under a distance, nearest first.

Promises: every pair under the threshold is found (or the nearest `limit` of them), by its exact distance; pairs are
ruled out only by a bound that is never above it.
Does not: copy the vectors; take a time that grows slower than the square of their number, though with a small factor.

The bound: the distance between projections on the axes of largest variance, with what is left of each vector's length
as one coordinate more. Blocks whose first coordinates are too far apart are not compared at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS
from index.search.searcher import View

_SAMPLE = 2048
_AXES = 96
_BLOCK = 2048
_EXACT_AT_ONCE = 512
Floats = NDArray[np.float32]
Pair = tuple[float, int, int]


def near_pairs(view: View, threshold: float, limit: int, stopped: Callable[[], bool] = lambda: False) -> list[Pair]:
    """Return (distance, vector id, vector id) of the nearest `limit` pairs at most `threshold` apart, nearest first.

    threshold: Euclidean. stopped: asked between blocks; when true, what was found so far is returned.
    """
    places = np.concatenate(
        [np.empty((0, 2), np.int64)]
        + [np.column_stack([np.full(int(alive.sum()), n), np.flatnonzero(alive)]) for n, (_, alive) in enumerate(view)]
    )
    if len(places) < 2:
        return []
    points = _coordinates(view, places)
    order = np.argsort(points[:, 0], kind="stable")
    points, places = points[order], places[order]
    lengths = np.einsum("ij,ij->i", points, points)
    slack = 1e-4 + 1e-5 * float(lengths.max())  # what rounding may add to a squared float32 distance
    best = _Best(threshold, limit)
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for other in range(start, len(points), _BLOCK):
            if stopped():
                return best.pairs()
            if points[other, 0] - points[rows][-1, 0] > best.reach + slack:
                break
            columns = slice(other, other + _BLOCK)
            squared = lengths[rows, None] + lengths[None, columns] - 2 * (points[rows] @ points[columns].T)
            first, second = np.nonzero(squared <= best.reach**2 + slack)
            if other == start:
                above = first < second
                first, second = first[above], second[above]
            bounds = squared[first, second] - slack
            order = np.argsort(bounds, kind="stable")
            both = np.stack([places[rows][first[order]], places[columns][second[order]]])
            _refine(view, both, bounds[order], best)
    return best.pairs()


class _Best:
    """The nearest pairs so far, and how far apart one may be to be wanted."""

    def __init__(self, threshold: float, limit: int) -> None:
        self.reach, self._limit = threshold, limit
        self._heap: list[Pair] = []  # heapq keeps the smallest in front, so the numbers are negative

    def offer(self, distance: float, first: int, second: int) -> None:
        """Keep this pair if it is one of the nearest."""
        if distance <= self.reach:
            low, high = sorted((first, second))
            heapq.heappush(self._heap, (-distance, -low, -high))
            if len(self._heap) > self._limit:
                heapq.heappop(self._heap)
            if len(self._heap) == self._limit:
                self.reach = -self._heap[0][0]

    def pairs(self) -> list[Pair]:
        """Return them, nearest first."""
        return sorted((-distance, -low, -high) for distance, low, high in self._heap)


def _refine(view: View, both: NDArray[np.int64], bounds: Floats, best: _Best) -> None:
    """Offer the candidates `both` (places, [2, n, 2]; the least bound first) with their distances to `best`."""
    for start in range(0, len(bounds), _EXACT_AT_ONCE):
        if bounds[start] > best.reach**2:
            return
        first, second = both[:, start : start + _EXACT_AT_ONCE]
        difference = (_rows(view, first) - _rows(view, second)).astype(np.float64)
        distances = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        for distance, a, b in zip(distances.tolist(), first, second, strict=True):
            best.offer(distance, _id(view, a), _id(view, b))


def _coordinates(view: View, places: NDArray[np.int64]) -> Floats:
    """Return float32 [n, axes + 1], no farther apart than the vectors themselves."""
    sample = _rows(view, places[np.linspace(0, len(places) - 1, min(_SAMPLE, len(places))).astype(np.int64)])
    centre = sample.mean(axis=0)
    _, vectors = np.linalg.eigh((sample - centre) @ (sample - centre).T)
    axes, _ = np.linalg.qr(((sample - centre).T @ vectors[:, ::-1][:, :_AXES]).astype(np.float64))
    axes = axes.astype(np.float32)
    points = np.empty((len(places), axes.shape[1] + 1), np.float32)
    for start in range(0, len(places), _BLOCK):
        rows = _rows(view, places[start : start + _BLOCK]) - centre
        projected = rows @ axes
        # From the remainder itself: as a difference of squares it would be lost to rounding where it is small.
        remainder = rows - projected @ axes.T
        points[start : start + _BLOCK, :-1] = projected
        points[start : start + _BLOCK, -1] = np.sqrt(np.einsum("ij,ij->i", remainder, remainder))
    return points


def _rows(view: View, places: NDArray[np.int64]) -> Floats:
    rows = np.empty((len(places), DIMENSIONS), np.float32)
    for number in np.unique(places[:, 0]):
        here = places[:, 0] == number
        rows[here] = view[number][0].rows[places[here, 1]]
    return rows


def _id(view: View, place: Any) -> int:
    return int(view[place[0]][0].ids[place[1]])
