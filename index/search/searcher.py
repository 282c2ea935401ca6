"""Nearest-neighbor search in memory with FAISS, in three modes.

`exact` compares the query with every vector in float32. `fast` compares short codes of all vectors, then the best
candidates exactly. `codes` compares only binary codes, by Hamming distance.
Guarantees: the distances returned by `exact` and `fast` are computed in float64; a vector equal to the query has
distance 0. A search sees every addition and removal that finished before it started, in every mode and without a
rebuild. It never waits for a writer and never sees half of a change.
Out of scope: images and keys; training codes; the order of equal distances, which the caller sorts by key.
References: the paper, section 6.1 (Euclidean distance between 4096-d activations; Hamming distance of binary codes).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.records import DeviceUse
from index.search.gpu.device import SearchDevice
from index.search.gpu.mirror import DeviceMirror
from index.search.gpu.search import candidates, search_exactly
from index.search.merging import compact, join_codes, next_capacity
from index.search.ranking import TIE, Hits, rank, rank_candidates
from index.search.segment import Code, CodeBlock, Found, Scanner, Segment, find_row
from index.search.view import View, ids_at, live_counts, live_slots, parts_of, rows_at, slots_of
from model_store.cores import limit_blas

Mode = Literal["exact", "fast", "codes"]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# A scan fetches _MARGIN more rows than needed, and is repeated with more rows while the last row is so close to the
# k-th that rounding may have swapped them.
_MARGIN = 16
_MAX_TIES = 1024
# How many candidates `fast` compares exactly: at least _CANDIDATES, and _CANDIDATES_EACH for each requested neighbor.
_CANDIDATES = 200
_CANDIDATES_EACH = 4
_BATCH = 1024


class Searcher:
    """All vectors of one space. Thread-safe: any number of threads can search during changes."""

    def __init__(self, *, threads: int) -> None:
        """threads: how many cores one search uses. Also limits NumPy's matrix products to one thread from now on."""
        limit_blas()
        self._threads = threads
        self._lock = threading.Lock()  # held while a few flags change, never during a scan
        self._change = threading.Lock()  # held while rows are written or segments are replaced
        self._codes: dict[str, Code] = {}
        self._segments: tuple[Segment, ...] = ()
        self._scanner: Scanner | None = None  # of the last search without a filter
        self._live = 0
        self._mirror: DeviceMirror | None = None
        # The least number of candidates that `fast` compares exactly; may be changed at any time.
        self.candidates = _CANDIDATES
        self._pool = ThreadPoolExecutor(
            threads,
            thread_name_prefix="fc7-search",
            # FAISS's own threads split queries, not rows, and would compete with this pool for the cores.
            initializer=faiss.omp_set_num_threads,
            initargs=(1,),
        )

    def __len__(self) -> int:
        return self._live

    def close(self) -> None:
        """Wait for running searches and stop the threads."""
        self.use_device(None)
        self._pool.shutdown()

    def use_device(self, device: SearchDevice | None) -> None:
        """Copy the vectors to a device in the background, and search them there; None: free its memory again."""
        old, self._mirror = (
            self._mirror,
            None if device is None else DeviceMirror(device, lambda: self._segments, lambda: self._codes.get("fast")),
        )
        if old is not None:
            old.close()

    @property
    def on_device(self) -> DeviceUse | None:
        """What is on the device; None if no device is used."""
        mirror = self._mirror
        return None if mirror is None else mirror.use

    @property
    def bytes_in_memory(self) -> int:
        """Memory used by rows, codes, ids and flags."""
        return sum(segment.bytes_in_memory for segment in self._segments)

    def has(self, mode: Mode) -> bool:
        """Return whether this mode can be searched now."""
        return mode == "exact" or mode in self._codes

    def apply(
        self, ids: NDArray[np.int64] | Sequence[int], rows: NDArray[np.float16], removed: Sequence[int] = ()
    ) -> None:
        """Add `rows` (float16 [n, 4096]) with `ids`, then remove `removed`; searches see both or neither.

        ids: ascending, and greater than all earlier ones. Unknown ids in `removed` are ignored.
        """
        ids = np.asarray(ids, dtype=np.int64)
        with self._change:
            appended: list[tuple[Segment, slice]] = []
            segments = list(self._segments)
            start = 0
            while start < len(ids):
                if not segments or segments[-1].count == segments[-1].capacity:
                    segments.append(self._make(next_capacity(self._live, len(ids) - start)))
                tail = segments[-1]
                end = min(len(ids), start + tail.capacity - tail.count)
                appended.append((tail, slice(tail.count, tail.count + end - start)))
                tail.append(ids[start:end], rows[start:end])
                start = end
            with self._lock:
                self._segments = tuple(segments)
                for segment, span in appended:
                    segment.alive[span] = True
                self._live += len(ids)
                used = [segment for segment in segments if segment.count]
                starts = [int(segment.ids[0]) for segment in used]
                for vector_id in removed:
                    if (found := find_row(used, starts, vector_id)) is not None:
                        segment, row = found
                        segment.alive[row] = False
                        segment.dead += 1
                        self._live -= 1
            if any(segment.mostly_dead for segment in segments):
                compacted = compact(segments)
                with self._lock:
                    self._segments = compacted
        self._changed()

    def adopt(self, segment: Segment) -> None:
        """Append a full segment. Its ids must be greater than all earlier ones."""
        with self._change, self._lock:
            self._segments = (*self._segments, segment)
            self._live += segment.capacity - segment.dead
        self._changed()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments, in the order of their ids."""
        return self._segments

    def live_rows(self, segments: Sequence[Segment]) -> list[NDArray[np.int64]]:
        """Return the numbers of the live rows of some segments, after the change that is being made now."""
        with self._change:
            return [np.flatnonzero(segment.alive[: segment.count]) for segment in segments]

    def replace(self, old: Sequence[Segment], new: Segment, rows: Sequence[NDArray[np.int64]] | None = None) -> bool:
        """Use `new` instead of neighboring segments that get no more rows. Returns False if one is not used any more.

        rows: numbers of the rows of each segment that `new` has, in this order, with all that are alive; None: `new`
        has all rows of a single full segment. `new` gets the flags and the codes.
        """
        with self._change:
            if any(segment not in self._segments for segment in old):
                return False
            new.blocks = old[0].blocks if rows is None else join_codes(old, rows)
            kept = [np.arange(old[0].count)] if rows is None else rows
            with self._lock:
                flags = [segment.alive[numbers] for segment, numbers in zip(old, kept, strict=True)]
                new.alive[:] = np.concatenate(flags)
                new.dead = new.capacity - int(np.count_nonzero(new.alive))
                start = self._segments.index(old[0])
                self._segments = (*self._segments[:start], new, *self._segments[start + len(old) :])
        self._changed()
        return True

    def ids(self) -> NDArray[np.int64]:
        """Return the ids of all live vectors, ascending."""
        view = self.view()
        return ids_at(view, live_slots(view))

    def sample(self, limit: int, *, seed: int = 0) -> NDArray[np.float16]:
        """Return up to `limit` random live rows without repetition, float16 [n, 4096]."""
        view = self.view()
        slots = live_slots(view)
        return rows_at(view, slots[np.sort(np.random.default_rng(seed).permutation(len(slots))[:limit])])

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yield all vectors alive now in batches of ascending ids: (ids [n], rows float16 [n, 4096])."""
        for segment, alive in self.view():
            rows = np.flatnonzero(alive)
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                yield segment.ids[batch], segment.rows[batch]

    def install(self, mode: Mode, code: Code, *, stop: threading.Event | None = None) -> None:
        """Compute the codes of all rows during searches and writes, then enable this mode.

        Replaces the installed code of `mode`, if any. Codes that `code` computed before are used again. stop: another
        thread can set it to cancel without any change.
        """
        made: dict[int, tuple[Segment, CodeBlock]] = {}
        while True:
            missing = 0
            for segment in self._segments:
                if id(segment) not in made:
                    old = segment.blocks.get(mode)
                    reused = old is not None and old.code is code and old.count == segment.capacity
                    made[id(segment)] = segment, old if old and reused else CodeBlock(code, segment.capacity)
                block = made[id(segment)][1]
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
        self._changed()

    def disable(self, mode: Mode) -> None:
        """Search without the codes of this mode, which stay in memory, until it is installed again."""
        with self._change:
            self._codes = {each: code for each, code in self._codes.items() if each != mode}

    def search(
        self, queries: NDArray[np.float16], k: int, view: View | None = None, mode: Mode = "exact"
    ) -> list[Hits]:
        """Return the `k` nearest vectors of each query, and all that tie with the last one (so perhaps more than `k`).

        queries: float16 [n, 4096]. view: what to search; by default all vectors alive now. mode: without an installed
        code, `fast` searches exactly and `codes` raises KeyError. Returns fewer than `k` hits if there are fewer
        vectors. If more than 1,024 vectors tie with the last one, it is undefined which of them are returned; `codes`
        returns exactly `k`, preferring lower ids.
        """
        code = self._codes[mode] if mode == "codes" else self._codes.get(mode)
        view = self.view() if view is None else view
        total = int(live_counts(view).sum())
        if total == 0 or k < 1:
            return [Hits(np.empty(0, np.int64), np.empty(0)) for _ in queries]
        floats = np.ascontiguousarray(queries, dtype=np.float32)
        # Looked up once, because another thread can install another code. The segments of a view taken before the code
        # was installed have none.
        blocks = [segment.blocks.get(mode) for segment, _ in view]
        known = [block for block in blocks if block is not None and block.code is code]
        if code is not None and len(known) == len(view):
            return self._search_codes(view, known, floats, min(k, total), mode)
        return self._search_exactly(view, floats, k, total)

    def _search_codes(
        self,
        view: View,
        blocks: Sequence[CodeBlock],
        floats: NDArray[np.float32],
        k: int,
        mode: Mode,
    ) -> list[Hits]:
        """Search with the codes of the segments of `view`, which has at least `k` live rows."""
        wide = k if mode == "codes" else max(self.candidates, _CANDIDATES_EACH * k)
        found = self._first_pass(view, blocks, floats, wide, mode)

        def finish(row: int) -> Hits:
            distances, slots = found[row]
            order = np.lexsort((slots, distances))[:wide]
            best = slots[order]
            if mode != "codes":
                return rank_candidates(view, floats[row], best, k)
            return Hits(ids_at(view, best), distances[order].astype(np.float64))

        return self._map(finish, range(len(floats)), alone=len(floats) == 1)

    def _first_pass(
        self, view: View, blocks: Sequence[CodeBlock], floats: NDArray[np.float32], wide: int, mode: Mode
    ) -> list[Found]:
        """Compare the codes: return estimated distances and slots of `wide` candidates, or more, of each query.

        Returns fewer if there are fewer.
        """
        code, mirror = blocks[0].code, self._mirror
        rows = None if mirror is None or mode != "fast" else mirror.codes(code)
        if rows is not None:
            queries, wide = code.query(floats), min(wide, int(live_counts(view).sum()))
            found = candidates(
                rows,
                view,
                queries,
                wide,
                lambda left, _, k, own: self._scan_codes(left, [blocks[n] for n in own], floats, k),
            )
            if all(len(each.slots) >= wide for each in found):
                return [(each.estimates, each.slots) for each in found]
        distances, slots = self._scan_codes(view, blocks, floats, wide)
        return list(zip(distances, slots, strict=True))

    def _search_exactly(self, view: View, floats: NDArray[np.float32], k: int, total: int) -> list[Hits]:
        hits: list[Hits | None] = [None] * len(floats)
        mirror = self._mirror
        if mirror is not None and len(mirror.rows):
            hits = search_exactly(
                mirror.rows,
                view,
                floats,
                k,
                scan=lambda left, part, wide, _: self._scan(left, part, wide),
            )
        wide = min(total, k + _MARGIN)
        pending = [number for number, found in enumerate(hits) if found is None]
        while pending:
            distances, slots = self._scan(view, floats[pending], wide)
            unresolved = []
            for row, number in enumerate(pending):
                order = np.lexsort((slots[row], distances[row]))[:wide]
                squared = distances[row][order]
                # A row beyond the last candidate may belong among the first k: scan again with more candidates.
                if wide < min(total, k + _MAX_TIES) and squared[-1] <= squared[k - 1] * (1 + TIE):
                    unresolved.append(number)
                else:
                    hits[number] = rank(view, floats[number], slots[row][order], k)
            wide = min(total, k + _MAX_TIES, wide * 4)
            pending = unresolved
        return [hit for hit in hits if hit is not None]

    def view(self) -> View:
        """Return the current state: the segments and a copy of their alive flags. Later changes do not affect it."""
        with self._lock:
            return [(segment, segment.alive[: segment.count].copy()) for segment in self._segments]

    def _scan(self, view: View, queries: NDArray[np.float32], k: int) -> Found:
        """Return the best `k` of each segment side by side: squared distances and slots."""

        def scan_segment(number: int) -> Found:
            segment, alive = view[number]
            count = min(k, int(np.count_nonzero(alive)))
            if count == 0:
                return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
            distances, rows = segment.search(queries, count, alive)
            return distances, slots_of(number, rows)

        parts = list(self._pool.map(scan_segment, range(len(view))))
        return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])

    def _scan_codes(self, view: View, blocks: Sequence[CodeBlock], floats: NDArray[np.float32], k: int) -> Found:
        """Return the best `k` of each thread's part of the segments side by side: estimated distances and slots."""
        code = blocks[0].code
        queries, scanner, alive = code.query(floats), self._scanner_of(code, blocks), [flags for _, flags in view]
        counts = live_counts(view)

        def scan_part(part: range) -> Found:
            count = min(k, int(counts[part.start : part.stop].sum()))
            if count == 0:
                return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
            distances, numbers, rows = scanner.search(queries, count, part, alive)
            return distances, slots_of(numbers, rows)

        parts = self._map(scan_part, parts_of(alive, self._threads), alone=len(floats) == 1)
        return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])

    def _map(self, work: Callable[[_Item], _Result], items: Sequence[_Item], *, alone: bool) -> list[_Result]:
        """Run `work` for each item. alone: the caller's thread takes the first one, which saves a task switch."""
        if not alone:
            return list(self._pool.map(work, items))
        others = [self._pool.submit(work, item) for item in items[1:]]
        faiss.omp_set_num_threads(1)  # of the caller's thread, as in the pool
        return [work(items[0]), *(other.result() for other in others)]

    def _scanner_of(self, code: Code, blocks: Sequence[CodeBlock]) -> Scanner:
        """Return the scanner of the blocks of a view. That of the last search is used again for the same blocks."""
        scanner = self._scanner
        if scanner is None or scanner.blocks != tuple(blocks):
            scanner = code.scanner(blocks)
            if len(blocks) == len(self._segments):  # not the view of a filter
                self._scanner = scanner
        return scanner

    def _changed(self) -> None:
        mirror = self._mirror
        if mirror is not None:
            mirror.update()

    def _make(self, capacity: int) -> Segment:
        """Return an empty segment with a block for each code."""
        segment = Segment(capacity)
        segment.blocks = {mode: CodeBlock(code, capacity) for mode, code in self._codes.items()}
        return segment
