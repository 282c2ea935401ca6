"""The state of a searcher at one moment, and access to its rows.

Out of scope: changes; a view never sees a later one (see searcher.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS
from index.search.segment import SEGMENT_ROWS, Segment

# The segments and a copy of their alive flags: the state of a searcher at one moment. A row is addressed by its slot:
# the segment's number in the view x SEGMENT_ROWS, plus the row's number in the segment.
View = list[tuple[Segment, NDArray[np.bool_]]]


def live_counts(view: View) -> NDArray[np.int64]:
    """Return the number of live rows of each segment, int64 [n]."""
    return np.array([np.count_nonzero(alive) for _, alive in view], np.int64)


def parts_of(alive: Sequence[NDArray[np.bool_]], parts: int) -> list[range]:
    """Divide neighboring segments into up to `parts` ranges with about the same number of rows.

    alive: the flags of the rows of each segment.
    """
    sizes = np.array([len(flags) for flags in alive])
    centers, total = np.cumsum(sizes) - sizes / 2, sizes.sum()
    cuts = np.searchsorted(centers, total * np.arange(1, parts) / parts)
    return [range(start, end) for start, end in pairwise([0, *cuts.tolist(), len(alive)]) if start < end]


def live_slots(view: View) -> NDArray[np.int64]:
    """Return the slots of all live rows, int64 [n]."""
    parts = [slots_of(number, np.flatnonzero(alive)) for number, (_, alive) in enumerate(view)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def slots_of(number: int | NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slots of rows of a segment, by its number in the view, or of a segment for each row."""
    return rows + number * SEGMENT_ROWS


def rows_at(view: View, slots: NDArray[np.int64]) -> NDArray[np.float16]:
    """Return the rows at `slots`, int64 [n] -> float16 [n, 4096]. Ascending slots take less time."""
    rows = np.empty((len(slots), DIMENSIONS), np.float16)
    for segment, offsets, here in _by_segment(view, slots):
        if here[-1] - here[0] < len(here):
            # `clip` lets NumPy write directly to `out`; all offsets are valid.
            np.take(segment.rows, offsets, axis=0, out=rows[here[0] : here[-1] + 1], mode="clip")
        else:
            rows[here] = segment.rows[offsets]
    return rows


def ids_at(view: View, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the vector ids at `slots`, int64 [n] -> int64 [n]."""
    ids = np.empty(len(slots), np.int64)
    for segment, offsets, here in _by_segment(view, slots):
        ids[here] = segment.ids[offsets]
    return ids


def _by_segment(view: View, slots: NDArray[np.int64]) -> Iterator[tuple[Segment, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each segment that has some of the slots, the rows of these slots in it, and their positions in `slots`."""
    numbers, offsets = np.divmod(slots, SEGMENT_ROWS)
    for number in np.unique(numbers):
        here = np.flatnonzero(numbers == number)
        yield view[number][0], offsets[here], here


def restrict(view: View, ids: NDArray[np.int64]) -> View:
    """Return `view` reduced to the rows whose ids are in `ids` (ascending); segments without rows are dropped."""
    restricted = []
    for segment, alive in view:
        if not alive.size:
            continue
        own = segment.ids[: len(alive)]
        allowed = ids[np.searchsorted(ids, own[0]) : np.searchsorted(ids, own[-1], side="right")]
        flags = np.zeros_like(alive)
        rows = np.searchsorted(own, allowed)
        flags[rows[own[rows] == allowed]] = True
        restricted.append((segment, flags & alive))
    return restricted
