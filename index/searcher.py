"""Which vectors are nearest: exact Euclidean distance over all of them, in memory, with FAISS.

Promises: every live vector is compared, in float32 on the stored float16 values; the distances handed out are computed
again in float64; a vector equal to the query is at distance 0; adds and removals are seen by every search that starts
after them, without a rebuild, and no search waits for them or sees half of one.
Does not: know images or the disk; order equal distances (the caller does, by key).
Source: the paper, section 6.1 (Euclidean distance between the 4096-d activations).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS

SEGMENT_ROWS = 8192
# The type stubs are of the C++ signatures, not of what the Python package makes of them.
_faiss: Any = faiss
_FIRST_ROWS = 256
_ROW_BYTES = 2 * DIMENSIONS
# A search first takes some rows more than asked for. float32 sums may swap neighbours that differ by a few parts in ten
# million: while the last row taken is so near to the k-th, it takes more; the margin mostly saves that second pass.
_MARGIN = 16
_TIE = 1e-5
_MOST_TIES = 1024


class Segment:
    """A block of rows that FAISS scans; rows are only ever appended, in ascending order of their ids.

    FAISS's own `add` may move the memory under a running search, so the memory is taken at once, and rows are written
    into it behind those that searches can see. One thread may append; any number may search.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.dead = 0
        self.ids = np.zeros(capacity, dtype=np.int64)
        self.alive = np.zeros(capacity, dtype=np.bool_)
        self._index = faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
        self._index.codes.resize(capacity * _ROW_BYTES)
        memory = faiss.rev_swig_ptr(self._index.codes.data(), capacity * _ROW_BYTES)
        self.rows: NDArray[np.float16] = memory.view(np.float16).reshape(capacity, DIMENSIONS)

    def append(self, ids: NDArray[np.int64], rows: NDArray[np.float16]) -> None:
        """Write rows behind the last one. They are not alive yet: no search finds them."""
        end = self.count + len(ids)
        self.rows[self.count : end] = rows
        self.ids[self.count : end] = ids
        self.count = end
        self._index.ntotal = end

    def search(
        self, queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return squared distances and row numbers, both [n, k]; -1 where fewer than `k` rows are alive."""
        bits = np.packbits(alive, bitorder="little")
        selector = _faiss.IDSelectorBitmap(bits)
        distances, rows = self._index.search(queries, k, params=_faiss.SearchParameters(sel=selector))
        return distances, rows


# The blocks with a copy of their flags: one moment of a searcher.
View = list[tuple[Segment, NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True)
class Hits:
    """The nearest of one query: vector ids and distances (Euclidean, float64), nearest first; equal ones by id."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]


class ExactSearcher:
    """All vectors of one space. One thread may change it, any number may search at the same time."""

    mode = "exact"

    def __init__(self, *, threads: int) -> None:
        """threads: how many cores one search uses."""
        self._lock = threading.Lock()  # held for the flip of a few flags, never for a scan
        self._segments: tuple[Segment, ...] = ()
        self._live = 0
        self._pool = ThreadPoolExecutor(
            threads,
            thread_name_prefix="fc7-search",
            # FAISS's own threads split queries, not rows, and would fight ours over the cores.
            initializer=faiss.omp_set_num_threads,
            initargs=(1,),
        )

    def __len__(self) -> int:
        return self._live

    def close(self) -> None:
        """Wait for running searches and end the threads."""
        self._pool.shutdown()

    @property
    def bytes_in_memory(self) -> int:
        """The memory that is taken for rows, ids and flags."""
        return sum(segment.capacity * (_ROW_BYTES + 9) for segment in self._segments)

    def apply(
        self, ids: NDArray[np.int64] | Sequence[int], rows: NDArray[np.float16], removed: Sequence[int] = ()
    ) -> None:
        """Add `rows` (float16 [n, 4096]) under `ids`, then remove `removed`: for a search, all of it or nothing.

        ids: ascending, and greater than any before. Ids in `removed` that are not here are ignored.
        """
        ids = np.asarray(ids, dtype=np.int64)
        fresh: list[tuple[Segment, slice]] = []
        segments = list(self._segments)
        start = 0
        while start < len(ids):
            if not segments or segments[-1].count == segments[-1].capacity:
                wanted = max(_FIRST_ROWS, self._live, len(ids) - start)
                segments.append(Segment(min(SEGMENT_ROWS, 1 << (wanted - 1).bit_length())))
            tail = segments[-1]
            end = min(len(ids), start + tail.capacity - tail.count)
            fresh.append((tail, slice(tail.count, tail.count + end - start)))
            tail.append(ids[start:end], rows[start:end])
            start = end
        with self._lock:
            self._segments = tuple(segments)
            for segment, span in fresh:
                segment.alive[span] = True
            self._live += len(ids)
            for vector_id in removed:
                if (place := self._find(vector_id)) is not None:
                    place[0].alive[place[1]] = False
                    place[0].dead += 1
                    self._live -= 1
        if any(_mostly_dead(segment) for segment in segments):
            self._compact()

    def ids(self) -> NDArray[np.int64]:
        """Return the ids of all live vectors, ascending."""
        with self._lock:
            parts = [segment.ids[: segment.count][segment.alive[: segment.count]] for segment in self._segments]
        return np.concatenate([*parts, np.empty(0, np.int64)])

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield all vectors that are live now, block by block, ascending: (ids [n], rows float16 [n, 4096])."""
        for segment, alive in self.view():
            slots = np.flatnonzero(alive)
            for start in range(0, len(slots), 1024):
                chosen = slots[start : start + 1024]
                yield segment.ids[chosen], segment.rows[chosen]

    def search(self, queries: NDArray[np.float16], k: int, view: View | None = None) -> list[Hits]:
        """Return the `k` nearest of each query, and what ties with the last of them (so perhaps more than `k`).

        queries: float16 [n, 4096]. view: what to search, all as it is now by default.
        Fewer than `k` when there are not so many. When over 1,024 vectors tie with the
        last one, which of them are returned is not defined.
        """
        view = self.view() if view is None else view
        total = sum(int(alive.sum()) for _, alive in view)
        if total == 0 or k < 1:
            return [Hits(np.empty(0, np.int64), np.empty(0)) for _ in queries]
        floats = np.ascontiguousarray(queries, dtype=np.float32)
        hits: list[Hits | None] = [None] * len(queries)
        wide = min(total, k + _MARGIN)
        open_ = list(range(len(queries)))
        while open_:
            distances, places = self._scan(view, floats[open_], wide)
            unsettled = []
            for row, number in enumerate(open_):
                order = np.lexsort((places[row], distances[row]))[:wide]
                squared = distances[row][order]
                # Something beyond the last candidate may belong among the first k: look further.
                if wide < min(total, k + _MOST_TIES) and squared[-1] <= squared[k - 1] * (1 + _TIE):
                    unsettled.append(number)
                else:
                    hits[number] = _rank(view, floats[number], places[row][order], k)
            wide = min(total, k + _MOST_TIES, wide * 4)
            open_ = unsettled
        return [hit for hit in hits if hit is not None]

    def view(self) -> View:
        """Return the segments with a copy of their flags: what one search sees, whatever is written meanwhile."""
        with self._lock:
            return [(segment, segment.alive[: segment.count].copy()) for segment in self._segments]

    def _scan(self, view: View, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return each segment's best `k` side by side: squared distances, and places (segment number x rows + row)."""

        def scan(number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            segment, alive = view[number]
            wanted = min(k, int(alive.sum()))
            if wanted == 0:
                return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
            distances, rows = segment.search(queries, wanted, alive)
            return distances, rows + number * SEGMENT_ROWS

        parts = list(self._pool.map(scan, range(len(view))))
        return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])

    def _find(self, vector_id: int) -> tuple[Segment, int] | None:
        """Return where a live vector is; the lock is held."""
        for segment in self._segments:
            if segment.count and segment.ids[0] <= vector_id <= segment.ids[segment.count - 1]:
                slot = int(np.searchsorted(segment.ids[: segment.count], vector_id))
                if segment.ids[slot] == vector_id and segment.alive[slot]:
                    return segment, slot
        return None

    def _compact(self) -> None:
        """Give back the memory of full segments that are mostly dead; running searches keep the old ones."""
        segments = []
        for segment in self._segments:
            if not _mostly_dead(segment):
                segments.append(segment)
            elif len(slots := np.flatnonzero(segment.alive[: segment.count])):
                smaller = Segment(len(slots))
                smaller.append(segment.ids[slots], segment.rows[slots])
                smaller.alive[:] = True
                segments.append(smaller)
        with self._lock:
            self._segments = tuple(segments)


def restrict(view: View, ids: NDArray[np.int64]) -> View:
    """Return `view` with those rows only whose ids are among `ids` (ascending): a search ranks no others."""
    restricted = []
    for segment, alive in view:
        if not alive.size:
            continue
        own = segment.ids[: len(alive)]
        wanted = ids[np.searchsorted(ids, own[0]) : np.searchsorted(ids, own[-1], side="right")]
        flags = np.zeros_like(alive)
        places = np.searchsorted(own, wanted)
        flags[places[own[places] == wanted]] = True
        restricted.append((segment, flags & alive))
    return restricted


def _mostly_dead(segment: Segment) -> bool:
    return segment.count == segment.capacity and 2 * segment.dead >= segment.capacity


def _rank(view: View, query: NDArray[np.float32], places: NDArray[np.int64], k: int) -> Hits:
    """Order candidates by their distance, computed in float64, and keep the first `k` and what ties with the last."""
    ids = np.empty(len(places), np.int64)
    distances = np.empty(len(places))
    for position, place in enumerate(places):
        segment = view[place // SEGMENT_ROWS][0]
        slot = place % SEGMENT_ROWS
        ids[position] = segment.ids[slot]
        # float32 differences of float16 values are exact enough; their squares are what must not be rounded away.
        difference = (segment.rows[slot].astype(np.float32) - query).astype(np.float64)
        distances[position] = np.sqrt(difference @ difference)
    order = np.lexsort((ids, distances))
    ids, distances = ids[order], distances[order]
    keep = int(np.searchsorted(distances, distances[min(k, len(distances)) - 1], side="right"))
    return Hits(ids[:keep], distances[:keep])
