"""Copies of a searcher's rows on a device, and the search among them.

FAISS's index on a GPU has no deletion and ignores filters. Therefore removed rows stay in a block until half of it is
unused, and a search asks for more rows than needed and drops those that are not in the view.

Guarantees: `scan` returns candidates for each query, and a bound: the squared distance of each other row of the view to
the query is at least that large, except for rows that `rest` contains. So a caller that compares the exact distances
of the candidates with the bound knows whether the nearest rows are among them. A failure of the device ends its use,
not the search.
Out of scope: exact distances, and the rows that are not on the device; the caller compares those on the CPU.

Error of the device's squared distances. FAISS computes |x|^2 + |q|^2 - 2xq. The rows and queries are float16 already,
so storing them is exact. The squares in |x|^2 are rounded to float16, a relative error of 2^-11, or an absolute error
of 2^-25 below its normal range. Sums are float32, so 4,096 summands add an error of at most 4,096 x 2^-23 times
(|x| + |q|)^2. Squares of values above 255 overflow; such rows and queries are left to the CPU.
References: FAISS's GpuIndexFlat, L2Norm and Distance.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from index.search.gpu.device import MAX_FOUND, SearchDevice
from index.search.segment import SEGMENT_ROWS, Segment
from index.search.view import View, slots_of

LARGEST: Final = 255.0
_SQUARE_ERROR: Final = 2.0**-11
_TINY_SQUARE_ERROR: Final = 2.0**-25
_SUM_ERROR: Final = 2.0**-23
_BLOCK_BYTES: Final = 256 << 20
_BLOCK_ROWS: Final = 262_144
_COPIED_ROWS: Final = 2048  # in one step; searches wait for it
_FEWEST_ROWS: Final = 256  # fewer new rows than that are not worth a copy; the CPU scans them in 0.1 ms

# Returns rows start:end of a segment as float32 [end - start, dimensions].
Values = Callable[[Segment, int, int], NDArray[np.float32]]


@dataclass(slots=True, eq=False)
class _Block:
    """An index on the device. Rows of a segment may be in several spans of its block, in ascending order.

    spans: position in the block, segment and row in it, of the first row of each span. reserved: rows that the block's
    segments have or may still get. norm: length of its longest row. small: whether it has the segments that will be
    merged, so that it can be freed then.
    """

    index: Any = None
    count: int = 0
    reserved: int = 0
    norm: float = 0.0
    small: bool = False
    spans: list[tuple[int, object, int]] = field(default_factory=list)


class _Scanned(NamedTuple):
    """What a block returns. slots: int64 [n, k], -1 for rows that are not in the view; estimates: float32 [n, k].

    errors: largest error of the estimates of each query, float64 [n]. complete: whether it has all rows of the block.
    """

    slots: NDArray[np.int64]
    estimates: NDArray[np.float32]
    errors: NDArray[np.float64]
    complete: bool


class Found(NamedTuple):
    """Candidates for one query. slots: int64 [n]; estimates: squared distances, float32 [n]; bound: see the module."""

    slots: NDArray[np.int64]
    estimates: NDArray[np.float32]
    bound: float


class DeviceRows:
    """The copies of one kind of rows: those of the vectors, or those of a short code. Thread-safe."""

    def __init__(self, device: SearchDevice, dimensions: int, values: Values) -> None:
        """values: what to copy. dimensions: the number of its columns."""
        self._device, self._dimensions, self._values = device, dimensions, values
        self._row_bytes = 2 * dimensions + 4  # FAISS stores the length of each row
        self._block_rows = max(SEGMENT_ROWS, min(_BLOCK_ROWS, _BLOCK_BYTES // (2 * dimensions)))
        self._blocks: list[_Block] = []
        self._placed: dict[object, tuple[_Block, int]] = {}  # by the segment's identity: its block, and rows copied
        self._refused: set[object] = set()  # segments with values that the device cannot compare
        self._full = False  # the last copy found no room
        self._exhausted = False  # the device has less memory than the limit
        self._warned = self._failed = False

    def __len__(self) -> int:
        """The number of copied rows."""
        return sum(block.count for block in self._blocks)

    @property
    def bytes(self) -> int:
        """The memory of the copied rows on the device."""
        return len(self) * self._row_bytes

    def copy(self, segments: Sequence[Segment], stop: threading.Event) -> None:
        """Copy the rows that are missing, as far as they fit, and drop blocks that are mostly unused.

        Only one thread at a time may call it. segments: all that the searcher has now.
        """
        self._drop_unused(segments)
        self._full = self._exhausted
        for segment in segments:
            while not (stop.is_set() or self._full or self._failed):
                start = self._placed.get(segment.identity, (None, 0))[1]
                end = min(segment.count, start + _COPIED_ROWS)
                worth = end - start >= _FEWEST_ROWS or (segment.full and end > start)
                if not worth or segment.identity in self._refused:
                    break
                self._copy(segment, start, end)

    def scan(self, view: View, queries: NDArray[np.float32], wide: int) -> tuple[list[Found], View]:
        """Return the best `wide` candidates of each query (fewer if there are no more), and the rows left to scan.

        queries: float32 [n, dimensions]. The rest is a view like `view`, in which the scanned rows are not alive.
        """
        rest: View = list(view)
        found: list[_Scanned] = []
        if not self._failed and (not queries.size or float(np.abs(queries).max()) <= LARGEST):
            try:
                with self._device.lock:
                    for block, numbers in self._blocks_of(view):
                        scanned = self._search(block, numbers, view, queries, wide)
                        if scanned is not None:
                            found.append(scanned)
                            for number in numbers:
                                rest[number] = self._without_copied(*view[number])
            except RuntimeError as error:  # of FAISS: the device has no memory left, or does not work
                self._fail(error)
                found, rest = [], list(view)
        return [_merge(found, row, wide) for row in range(len(queries))], rest

    def close(self) -> None:
        """Free the memory on the device. Later scans leave everything to the caller."""
        with self._device.lock:
            self._failed = True
            self._remove(list(self._blocks))

    def _blocks_of(self, view: View) -> list[tuple[_Block, list[int]]]:
        """Return the blocks that have rows of the view, and the numbers of their segments in the view."""
        blocks: dict[int, tuple[_Block, list[int]]] = {}
        for number, (segment, _) in enumerate(view):
            placed = self._placed.get(segment.identity)
            if placed is not None:
                blocks.setdefault(id(placed[0]), (placed[0], []))[1].append(number)
        return list(blocks.values())

    def _search(
        self, block: _Block, numbers: Sequence[int], view: View, queries: NDArray[np.float32], wide: int
    ) -> _Scanned | None:
        """Search a block, of which the segments with these numbers are in the view; None if the CPU has to."""
        alive = 0
        for number in numbers:
            segment, flags = view[number]
            alive += int(np.count_nonzero(flags[: self._placed[segment.identity][1]]))
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        errors = error_bound(block.norm, lengths, self._dimensions)
        if not alive:
            empty = np.empty((len(queries), 0))
            return _Scanned(empty.astype(np.int64), empty.astype(np.float32), errors, complete=True)
        k = min(block.count, -(-wide * block.count // alive))
        if k > MAX_FOUND:
            return None
        estimates, positions = block.index.search(queries, k)
        slots = _slots(block, {view[number][0].identity: number for number in numbers}, view, positions)
        return _Scanned(slots, estimates, errors, complete=k == block.count)

    def _without_copied(self, segment: Segment, alive: NDArray[np.bool_]) -> tuple[Segment, NDArray[np.bool_]]:
        """Return a segment of a view with the flags of the rows that are not on the device."""
        copied = self._placed[segment.identity][1]
        if copied >= len(alive):
            return segment, alive[:0]
        left = alive.copy()
        left[:copied] = False
        return segment, left

    def _copy(self, segment: Segment, start: int, end: int) -> None:
        """Copy rows start:end of a segment, or note why not."""
        values = self._values(segment, start, end)
        if float(np.abs(values).max()) > LARGEST:
            self._refused.add(segment.identity)
            return
        length = float(np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64).max()))
        with self._device.lock:
            block = self._block_for(segment)
            if not self._device.has_room((end - start) * self._row_bytes, block.count * self._row_bytes):
                self._full = True
                self._warn("the memory limit is reached")
                return
            try:
                if block.index is None:
                    block.index = self._device.index(self._dimensions)
                block.index.add(values)
            except RuntimeError as error:  # of FAISS: the device has less memory than the limit
                self._full = self._exhausted = True
                self._warn(str(error))
                self._remove([block])  # it may be incomplete
                return
            if block not in self._blocks:
                self._blocks.append(block)
            if not start:
                block.reserved += segment.capacity
            block.norm = max(block.norm, length)
            _extend(block, segment.identity, start)
            block.count += end - start
            self._placed[segment.identity] = block, end
            self._device.used += (end - start) * self._row_bytes

    def _block_for(self, segment: Segment) -> _Block:
        """Return the block of the segment, or for a new segment one with room for all of its rows."""
        placed = self._placed.get(segment.identity)
        if placed is not None:
            return placed[0]
        small = segment.capacity < SEGMENT_ROWS // 2
        last = next((block for block in reversed(self._blocks) if block.small == small), None)
        if last is not None and last.reserved + segment.capacity <= self._block_rows:
            return last
        return _Block(small=small)

    def _drop_unused(self, segments: Sequence[Segment]) -> None:
        """Drop the blocks of which less than half of the rows belong to these segments."""
        current = {segment.identity for segment in segments}
        self._refused &= current
        with self._device.lock:
            used = {id(block): 0 for block in self._blocks}
            for identity, (block, rows) in self._placed.items():
                used[id(block)] += rows if identity in current else 0
            self._remove([block for block in self._blocks if 2 * used[id(block)] < block.count])

    def _remove(self, blocks: Sequence[_Block]) -> None:
        """Free blocks. The device's lock must be held, because FAISS's memory manager is not thread-safe."""
        for block in blocks:
            self._blocks = [each for each in self._blocks if each is not block]
            self._placed = {each: placed for each, placed in self._placed.items() if placed[0] is not block}
            self._device.used -= block.count * self._row_bytes
            block.index = None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            _log(self._device).warning(
                "not all vectors fit on the device, searching the others on the CPU",
                copied=len(self),
                reason=reason,
                setting="FC7_CUDA_INDEX_MB",
            )

    def _fail(self, error: RuntimeError) -> None:
        if not self._failed:
            self._failed = True
            _log(self._device).error("the device failed, searching on the CPU", reason=str(error))


def error_bound(norm: float, lengths: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Return the largest error of squared distances between rows of at most this length and queries, float64 [n]."""
    squares = _SQUARE_ERROR * (norm**2 + lengths**2) + 2 * dimensions * _TINY_SQUARE_ERROR
    bound: NDArray[np.float64] = squares + dimensions * _SUM_ERROR * (norm + lengths) ** 2
    return bound


def _slots(block: _Block, numbers: dict[object, int], view: View, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slots of positions in a block, -1 for rows that are not alive in the view."""
    starts = np.array([start for start, _, _ in block.spans])
    spans = np.searchsorted(starts, positions, side="right") - 1
    slots = np.full(positions.shape, -1, np.int64)
    for number in np.unique(spans):
        start, identity, row = block.spans[number]
        in_view = numbers.get(identity)
        if in_view is None or number < 0:
            continue
        here = spans == number
        rows = positions[here] - start + row
        alive = view[in_view][1]
        known = rows < len(alive)
        known[known] = alive[rows[known]]
        slots[here] = np.where(known, slots_of(in_view, rows), -1)
    return slots


def _merge(found: Sequence[_Scanned], row: int, wide: int) -> Found:
    """Return the best candidates of one query from all blocks."""
    slots = np.concatenate([np.empty(0, np.int64), *(each.slots[row] for each in found)])
    estimates = np.concatenate([np.empty(0, np.float32), *(each.estimates[row] for each in found)])
    bounds = [float(each.estimates[row, -1]) - float(each.errors[row]) for each in found if not each.complete]
    slots, estimates = slots[slots >= 0], estimates[slots >= 0]
    if len(slots) > wide:
        order = np.argsort(estimates, kind="stable")[:wide]
        slots, estimates = slots[order], estimates[order]
        bounds.append(float(estimates[-1]) - max(float(each.errors[row]) for each in found))
    return Found(slots, estimates, min(bounds, default=np.inf))


def _extend(block: _Block, identity: object, row: int) -> None:
    """Add a span for the rows of a segment from `row` on, which are appended to the block, unless they continue one."""
    if block.spans:
        start, last, first = block.spans[-1]
        if last is identity and first + block.count - start == row:
            return
    block.spans.append((block.count, identity, row))


def _log(device: SearchDevice) -> Any:
    return structlog.get_logger(__name__).bind(device=device.name)
