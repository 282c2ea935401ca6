"""Find near-duplicates: groups of vectors that are linked by pairs within a distance.

Two vectors are in the same group if a chain of pairs at most `threshold` apart connects them (single linkage), so the
groups do not depend on the order of the vectors.
Guarantees: each link is decided by an exact distance. A pair is skipped only if a lower bound of its distance is too
large, or if both vectors are in the same group already. If the search is stopped early, the groups have only true
links, but some may be missing or split. Equal vectors cost one hash each.
Out of scope: subquadratic time in the worst case. The time grows with the square of the number of different vectors,
with a small factor, unless most of them are much farther apart than the threshold.

The lower bound is the distance between projections on the axes of largest variance, with the length of the rest of
each vector as one more coordinate. The projections are divided into slices along their widest coordinate, and two
slices are compared only if their bounding boxes are close enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.search.product_code import principal_axes
from index.search.segment import to_float32
from index.search.view import View, ids_at, live_slots, rows_at

_SAMPLE = 1024
_AXES = 96
_BLOCK = 1024
# More candidates than this many for each row of a block are compared by one product of matrices.
_MANY_CANDIDATES = 8
_EXACT_BATCH = 256
# The largest relative error of a squared distance that is computed in float32 by a product of matrices.
_ROUNDING = 1e-4
Floats = NDArray[np.float32]
Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class NearGroup:
    """A group of near-duplicate vectors. keep: the id of the vector to keep. size: number of vectors, with this one.

    others: (distance from it, vector id) of other vectors, nearest first; perhaps not all of them.
    """

    keep: int
    size: int
    others: list[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class NearGroups:
    """Groups, largest first.

    stopped: the search ended early, so groups may be missing or split. shortened: more groups or vectors were found
    than are listed.
    """

    groups: list[NearGroup]
    stopped: bool
    shortened: bool

    @property
    def ids(self) -> list[int]:
        """The ids of the listed vectors, ascending."""
        others = {number for group in self.groups for _, number in group.others}
        return sorted(others | {group.keep for group in self.groups})


def near_groups(
    view: View,
    threshold: float,
    *,
    groups: int,
    vectors: int,
    keep: Callable[[list[int]], int] = min,
    stopped: Stopped = lambda: False,
) -> NearGroups:
    """Return the groups of vectors linked by pairs at most `threshold` apart, largest first.

    threshold: a Euclidean distance. groups: the maximum number of groups. vectors: the maximum number of vectors listed
    in all of them. keep: chooses the vector to keep among the ids of a group. stopped: called repeatedly; once it
    returns True, the groups found so far are returned.
    """
    slots = live_slots(view)
    labels, unique, hashed = _collapse_equal(view, slots, stopped)
    finished = hashed
    if hashed and len(unique) > 1:
        linker = _Linker(view, slots[unique], threshold, stopped)
        finished = linker.run()
        # Each vector has the label of the first equal one, which now gets the first position of its group.
        root_of = np.arange(len(labels))
        root_of[unique] = unique[linker.labels]
        labels = root_of[labels]
    members = _groups_of(labels)
    listed: list[NearGroup] = []
    shortened = False
    for number in np.argsort([-len(each) for each in members], kind="stable")[:groups].tolist():
        if vectors <= 0:
            break
        group = slots[members[number]]
        ids = ids_at(view, group)
        kept = keep(ids.tolist())
        others = group[ids != kept][:vectors]
        vectors -= len(others)
        shortened = shortened or len(others) < len(group) - 1
        distances = _distances(view, np.full(len(others), group[ids == kept][0]), others).tolist()
        near = sorted(zip(distances, ids_at(view, others).tolist(), strict=True))
        listed.append(NearGroup(kept, len(group), near))
    return NearGroups(listed, not finished, shortened or len(listed) < len(members))


def _collapse_equal(
    view: View, slots: NDArray[np.int64], stopped: Stopped
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Return (labels, positions of different vectors, whether all vectors were hashed).

    labels: for each slot, the position of the first slot with an equal vector, int64 [n].
    """
    labels = np.arange(len(slots))
    first: dict[bytes, int] = {}
    for start in range(0, len(slots), _BLOCK):
        if stopped():
            return labels, np.empty(0, np.int64), False
        for position, row in enumerate(rows_at(view, slots[start : start + _BLOCK]), start):
            labels[position] = first.setdefault(hashlib.blake2b(row.data, digest_size=16).digest(), position)
    return labels, np.fromiter(first.values(), np.int64, len(first)), True


def _groups_of(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions, ascending, of each label that occurs more than once."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    several = counts > 1
    return [order[a : a + n] for a, n in zip(starts[several], counts[several], strict=True)]


class _Linker:
    """Links different vectors. labels: for each vector, the first vector of its group, as positions in `slots`."""

    def __init__(self, view: View, slots: NDArray[np.int64], threshold: float, stopped: Stopped) -> None:
        self._view, self._slots, self._threshold, self._stopped = view, slots, threshold, stopped
        self.labels = np.arange(len(slots))

    def run(self) -> bool:
        """Compare all blocks. Returns False if it was stopped before the end."""
        if self._stopped():
            return False
        points = _coordinates(self._view, self._slots, self._stopped)
        if points is None:
            return False
        # Slices along the widest coordinate: most of them are far from most others.
        order = np.argsort(points[:, int(np.ptp(points, axis=0).argmax())], kind="stable")
        blocks = [order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK)]
        low = np.stack([points[block].min(axis=0) for block in blocks])
        high = np.stack([points[block].max(axis=0) for block in blocks])
        lengths = np.einsum("ij,ij->i", points, points)
        # An upper bound of the rounding error of a squared distance between points.
        slack = 1e-4 + 1e-5 * float(lengths.max())
        limit = self._threshold**2 + slack
        for number, block in enumerate(blocks):
            gaps = np.maximum(0, np.maximum(low[number] - high[number:], low[number:] - high[number]))
            close = np.flatnonzero(np.einsum("ij,ij->i", gaps, gaps) <= limit) + number
            for other in close.tolist():
                if self._stopped():
                    return False
                columns = blocks[other]
                squared = points[block] @ points[columns].T
                squared *= -2
                squared += lengths[block, None]
                squared += lengths[None, columns]
                near = squared <= limit
                near &= self.labels[block, None] != self.labels[None, columns]
                if near.any() and not self._unite_near(block, columns, near):
                    return False
        return True

    def _unite_near(self, rows: NDArray[np.int64], columns: NDArray[np.int64], near: NDArray[np.bool_]) -> bool:
        """Unite the candidates in `near`, bool [rows, columns], that are close enough. Returns False if stopped."""
        if np.count_nonzero(near) > _MANY_CANDIDATES * len(rows):
            near &= self._may_be_near(rows, columns)
        while True:
            # One candidate for each row and for each column. Pairs within a group need no exact distance.
            near &= self.labels[rows, None] != self.labels[None, columns]
            own_rows, own_columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
            if not len(own_rows):
                return True
            left = np.concatenate([own_rows, near[:, own_columns].argmax(axis=0)])
            right = np.concatenate([near[own_rows].argmax(axis=1), own_columns])
            near[left, right] = False
            for start in range(0, len(left), _EXACT_BATCH):
                if self._stopped():
                    return False
                part = slice(start, start + _EXACT_BATCH)
                first, second = rows[left[part]], columns[right[part]]
                apart = self.labels[first] != self.labels[second]  # the batches before may have united them
                first, second = first[apart], second[apart]
                linked = _distances(self._view, self._slots[first], self._slots[second]) <= self._threshold
                self._unite(first[linked], second[linked])

    def _may_be_near(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pairs are within the threshold, judged by all coordinates in float32."""
        left, right = _floats(self._view, self._slots[rows]), _floats(self._view, self._slots[columns])
        origin = left.mean(axis=0)  # smaller values have smaller rounding errors
        left -= origin
        right -= origin
        squares = np.einsum("ij,ij->i", left, left), np.einsum("ij,ij->i", right, right)
        squared = squares[0][:, None] + squares[1] - 2 * (left @ right.T)
        slack = _ROUNDING * (squares[0][:, None] + squares[1]) + _ROUNDING
        near: NDArray[np.bool_] = squared <= self._threshold**2 + slack
        return near

    def _unite(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Unite the groups of each pair."""
        if not len(first):
            return
        parents: dict[int, int] = {}

        def root(label: int) -> int:
            while (parent := parents.get(label, label)) != label:
                parents[label] = parents.get(parent, parent)
                label = parent
            return label

        for a, b in zip(self.labels[first].tolist(), self.labels[second].tolist(), strict=True):
            low, high = sorted((root(a), root(b)))
            if low != high:
                parents[high] = low
        new = np.arange(len(self.labels))
        changed = list(parents)
        new[changed] = [root(label) for label in changed]
        self.labels = new[self.labels]


def _coordinates(view: View, slots: NDArray[np.int64], stopped: Stopped) -> Floats | None:
    """Return points, float32 [n, axes + 1], whose distances are lower bounds of the vectors' distances.

    Returns None if it was stopped.
    """
    sample = _floats(view, slots[np.linspace(0, len(slots) - 1, min(_SAMPLE, len(slots))).astype(np.int64)])
    center = sample.mean(axis=0)
    # Orthonormal to float32's precision, because the distances must not become larger.
    axes, _ = np.linalg.qr(principal_axes(sample - center, _AXES).astype(np.float64))
    axes = axes.astype(np.float32)
    points = np.empty((len(slots), axes.shape[1] + 1), np.float32)
    for start in range(0, len(slots), _BLOCK):
        if stopped():
            return None
        rows = _floats(view, slots[start : start + _BLOCK]) - center
        projected = rows @ axes
        # Computed from the remainder itself: a difference of squared lengths would lose small values to rounding.
        remainder = rows - projected @ axes.T
        points[start : start + _BLOCK, :-1] = projected
        points[start : start + _BLOCK, -1] = np.sqrt(np.einsum("ij,ij->i", remainder, remainder))
    return points


def _distances(view: View, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the exact distances between the vectors at the slots `first` and `second`, float64 [n]."""
    distances = np.empty(len(first))
    for start in range(0, len(first), _EXACT_BATCH):
        part = slice(start, start + _EXACT_BATCH)
        # float32 holds differences of float16 values exactly enough, but not the sum of their squares.
        difference = (_floats(view, first[part]) - _floats(view, second[part])).astype(np.float64)
        distances[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return distances


def _floats(view: View, slots: NDArray[np.int64]) -> Floats:
    return to_float32(rows_at(view, slots))
