"""Which vectors are nearest, with FAISS: by exact Euclidean distance, by short codes and then exactly, by codes alone.

Promises: `exact` compares every live vector, in float32 on the stored float16 values; `fast` compares the codes of all
live vectors, and exactly those that seem nearest; the distances that both hand out are computed again in float64; a
vector equal to the query is at distance 0; adds and removals are seen by every search that starts after them, in every
mode, without a rebuild, and no search waits for them or sees half of one.
Does not: know images; train a code; order equal distances (the caller does, by key; `codes` by id).
Source: the paper, section 6.1 (Euclidean distance between the 4096-d activations; Hamming distance of binary codes).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from index.records import DIMENSIONS
from index.search.segment import SEGMENT_ROWS, Code, CodeBlock, Found, Segment, rows_nearest

Mode = Literal["exact", "fast", "codes"]
_FIRST_ROWS = 256
# A search first takes some rows more than asked for. float32 sums may swap neighbours that differ by a few parts in ten
# million: while the last row taken is so near to the k-th, it takes more; the margin mostly saves that second pass.
_MARGIN = 16
_TIE = 1e-5
_MOST_TIES = 1024
# How many candidates of the short codes are compared exactly, at least and for each neighbour asked for.
_CANDIDATES = 200
_CANDIDATES_EACH = 4
_BATCH = 1024
_AT_ONCE = 32  # rows of 4,096 that fit the processor's cache as float64


# The blocks with a copy of their flags: one moment of a searcher.
View = list[tuple[Segment, NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True)
class Hits:
    """The nearest of one query: vector ids and distances (float64), nearest first; equal ones by id.

    Distances are Euclidean; under `codes`, numbers of differing bits.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]


class Searcher:
    """All vectors of one space. Any number of threads may search while others change it."""

    def __init__(self, *, threads: int) -> None:
        """threads: how many cores one search uses. From then on numpy multiplies matrices in one thread."""
        # OpenBLAS splits even the product of one query, and its threads then spin for 20 ms on cores the net needs.
        openblas = ThreadpoolController().select(internal_api="openblas").select(threading_layer="pthreads")
        openblas.limit(limits=1)
        self._threads = threads
        self._lock = threading.Lock()  # held for the flip of a few flags, never for a scan
        self._change = threading.Lock()  # held by whoever writes rows or replaces segments
        self._codes: dict[str, Code] = {}
        self._folder: Path | None = None
        self._segments: tuple[Segment, ...] = ()
        self._live = 0
        # How many candidates of the short codes `fast` compares exactly, at least; may be changed at any time.
        self.candidates = _CANDIDATES
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
        return sum(segment.bytes_in_memory for segment in self._segments)

    def has(self, mode: Mode) -> bool:
        """Tell whether a search can be in this mode now."""
        return mode == "exact" or mode in self._codes

    def apply(
        self, ids: NDArray[np.int64] | Sequence[int], rows: NDArray[np.float16], removed: Sequence[int] = ()
    ) -> None:
        """Add `rows` (float16 [n, 4096]) under `ids`, then remove `removed`: for a search, all of it or nothing.

        ids: ascending, and greater than any before. Ids in `removed` that are not here are ignored.
        """
        with self._change:
            self._apply(np.asarray(ids, dtype=np.int64), rows, removed)

    def _apply(self, ids: NDArray[np.int64], rows: NDArray[np.float16], removed: Sequence[int]) -> None:
        fresh: list[tuple[Segment, slice]] = []
        segments = list(self._segments)
        start = 0
        while start < len(ids):
            if not segments or segments[-1].count == segments[-1].capacity:
                wanted = max(_FIRST_ROWS, self._live, len(ids) - start)
                segments.append(self._make(min(SEGMENT_ROWS, 1 << (wanted - 1).bit_length())))
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

    def sample(self, limit: int, *, seed: int = 0) -> NDArray[np.float16]:
        """Return up to `limit` of the live rows, drawn without repeats: float16 [n, 4096]."""
        places = [(segment, slot) for segment, alive in self.view() for slot in np.flatnonzero(alive)]
        chosen = np.random.default_rng(seed).permutation(len(places))[:limit]
        rows = np.empty((len(chosen), DIMENSIONS), np.float16)
        for number, place in enumerate(np.sort(chosen)):
            segment, slot = places[place]
            rows[number] = segment.rows[slot]
        return rows

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield all vectors that are live now, block by block, ascending: (ids [n], rows float16 [n, 4096])."""
        for segment, alive in self.view():
            slots = np.flatnonzero(alive)
            for start in range(0, len(slots), 1024):
                chosen = slots[start : start + 1024]
                yield segment.ids[chosen], segment.rows[chosen]

    def install(self, mode: Mode, code: Code, *, stop: threading.Event | None = None) -> None:
        """Make the codes of all rows, while searches and writes go on, and search in this mode from then on.

        Replaces a code that was installed for `mode`. stop: set by another thread to leave it, with nothing changed.
        """
        made: dict[int, tuple[Segment, CodeBlock]] = {}
        while True:
            missing = 0
            for segment in self._segments:
                block = made.setdefault(id(segment), (segment, CodeBlock(code, segment.capacity)))[1]
                missing += segment.count - block.count
                while missing > _BATCH and block.count < segment.count:
                    if stop is not None and stop.is_set():
                        return
                    block.append(segment.rows[block.count : min(segment.count, block.count + _BATCH)])
            if missing <= _BATCH:
                break
        with self._change:
            for segment in self._segments:
                entry = made.get(id(segment))
                block = CodeBlock(code, segment.capacity) if entry is None else entry[1]
                block.append(segment.rows[block.count : segment.count])
                segment.blocks = {**segment.blocks, mode: block}
            self._codes = {**self._codes, mode: code}

    def map_rows(self, folder: Path, *, stop: threading.Event | None = None) -> None:
        """Keep the rows in files of `folder` from now on, mapped: `exact` and `fast` read them, the system caches them.

        Raises OSError when there is no room; what was moved stays so, the other rows stay in memory.
        """
        while stop is None or not stop.is_set():
            with self._change:
                segment = next((each for each in self._segments if not each.mapped), None)
                if segment is None:
                    self._folder = folder
                    return
                moved = segment.moved(folder)
                with self._lock:
                    moved.alive[:], moved.dead = segment.alive, segment.dead
                    self._segments = tuple(moved if each is segment else each for each in self._segments)

    def search(
        self, queries: NDArray[np.float16], k: int, view: View | None = None, mode: Mode = "exact"
    ) -> list[Hits]:
        """Return the `k` nearest of each query, and what ties with the last of them (so perhaps more than `k`).

        queries: float16 [n, 4096]. view: what to search, all as it is now by default. mode: `fast` is `exact` while it
        has no code; `codes` without one is a KeyError. Fewer than `k` when there are not so many. When over 1,024
        vectors tie with the last one, which of them are returned is not defined; under `codes` it is those of the
        lowest ids.
        """
        code = self._codes[mode] if mode == "codes" else self._codes.get(mode)
        view = self.view() if view is None else view
        total = sum(int(alive.sum()) for _, alive in view)
        if total == 0 or k < 1:
            return [Hits(np.empty(0, np.int64), np.empty(0)) for _ in queries]
        floats = np.ascontiguousarray(queries, dtype=np.float32)
        # A view from before the code was installed has segments without it.
        if code is not None and all(_coded(segment, mode, code) for segment, _ in view):
            return self._search_codes(view, floats, k, mode, code)
        return self._search_exactly(view, floats, k, total)

    def _search_codes(self, view: View, floats: NDArray[np.float32], k: int, mode: Mode, code: Code) -> list[Hits]:
        total = sum(int(alive.sum()) for _, alive in view)
        k = min(k, total)
        wide = k if mode == "codes" else min(total, max(self.candidates, _CANDIDATES_EACH * k))
        distances, places = self._scan(view, code.query(floats), wide, mode)

        def finish(row: int) -> Hits:
            order = np.lexsort((places[row], distances[row]))[:wide]
            chosen = places[row][order]
            if mode != "codes":
                return _rank(view, floats[row], _likely(view, floats[row], chosen, k), k)
            ids = np.array([view[place // SEGMENT_ROWS][0].ids[place % SEGMENT_ROWS] for place in chosen], np.int64)
            return Hits(ids, distances[row][order].astype(np.float64))

        return list(self._pool.map(finish, range(len(floats))))

    def _search_exactly(self, view: View, floats: NDArray[np.float32], k: int, total: int) -> list[Hits]:
        hits: list[Hits | None] = [None] * len(floats)
        wide = min(total, k + _MARGIN)
        open_ = list(range(len(floats)))
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

    def _scan(self, view: View, queries: NDArray[np.float32], k: int, mode: Mode = "exact") -> Found:
        """Return each segment's best `k` side by side: distances, and places (segment number x rows + row)."""

        def scan(numbers: range) -> list[Found]:
            return [scan_one(number) for number in numbers]

        def scan_one(number: int) -> Found:
            segment, alive = view[number]
            wanted = min(k, int(alive.sum()))
            if wanted == 0:
                return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
            what = segment if mode == "exact" else segment.blocks[mode]
            distances, rows = what.search(queries, wanted, alive)
            return distances, rows + number * SEGMENT_ROWS

        # A block's codes are scanned in the time that it takes to hand the work to a thread: many of them at once.
        each = 1 if mode == "exact" else -(-len(view) // self._threads)
        numbers = [range(start, min(start + each, len(view))) for start in range(0, len(view), each)]
        parts = [part for some in self._pool.map(scan, numbers) for part in some]
        return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])

    def _find(self, vector_id: int) -> tuple[Segment, int] | None:
        """Return where a live vector is; the lock is held."""
        for segment in self._segments:
            if segment.count and segment.ids[0] <= vector_id <= segment.ids[segment.count - 1]:
                slot = int(np.searchsorted(segment.ids[: segment.count], vector_id))
                if segment.ids[slot] == vector_id and segment.alive[slot]:
                    return segment, slot
        return None

    def _make(self, capacity: int) -> Segment:
        """Return an empty segment, in a file where rows are kept so and there is room, with a block for each code."""
        segment = None
        if self._folder is not None:
            # Without room for it the rows take memory, and everything goes on.
            with contextlib.suppress(OSError):
                segment = Segment(capacity, self._folder)
        segment = segment or Segment(capacity)
        segment.blocks = {mode: CodeBlock(code, capacity) for mode, code in self._codes.items()}
        return segment

    def _compact(self) -> None:
        """Give back the memory of full segments that are mostly dead; running searches keep the old ones."""
        segments = []
        for segment in self._segments:
            if not _mostly_dead(segment):
                segments.append(segment)
            elif len(slots := np.flatnonzero(segment.alive[: segment.count])):
                smaller = self._make(len(slots))
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


def _coded(segment: Segment, mode: Mode, code: Code) -> bool:
    block = segment.blocks.get(mode)
    return block is not None and block.code is code


def _likely(view: View, query: NDArray[np.float32], places: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return the candidates that may be among the `k` nearest, by float32 distances: a tenth of _rank's work."""
    numbers, slots = places // SEGMENT_ROWS, places % SEGMENT_ROWS
    order = np.argsort(numbers, kind="stable")
    numbers, slots = numbers[order], slots[order]
    bounds = np.searchsorted(numbers, np.arange(len(view) + 1))
    rows = np.concatenate(
        [
            segment.rows[slots[start:end]]
            for (segment, _), start, end in zip(view, bounds[:-1], bounds[1:], strict=True)
            if end > start
        ]
    )
    squared, found = rows_nearest(rows, query)
    within = np.searchsorted(squared, squared[min(k, len(squared)) - 1] * (1 + _TIE), side="right")
    return places[order[found[:within]]]


def _rank(view: View, query: NDArray[np.float32], places: NDArray[np.int64], k: int) -> Hits:
    """Order candidates by their distance, computed in float64, and keep the first `k` and what ties with the last."""
    ids = np.empty(len(places), np.int64)
    squared = np.empty(len(places))
    numbers, slots = places // SEGMENT_ROWS, places % SEGMENT_ROWS
    for number in np.unique(numbers):
        segment, here = view[number][0], np.flatnonzero(numbers == number)
        ids[here] = segment.ids[slots[here]]
        for start in range(0, len(here), _AT_ONCE):
            some = here[start : start + _AT_ONCE]
            # float32 differences of float16 values are exact enough; their squares are what must not be rounded away.
            differences = (segment.rows[slots[some]].astype(np.float32) - query).astype(np.float64)
            squared[some] = np.einsum("ij,ij->i", differences, differences)
    distances = np.sqrt(squared)
    order = np.lexsort((ids, distances))
    ids, distances = ids[order], distances[order]
    keep = int(np.searchsorted(distances, distances[min(k, len(distances)) - 1], side="right"))
    return Hits(ids[:keep], distances[:keep])
