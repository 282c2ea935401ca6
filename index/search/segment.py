"""Segments: blocks of vectors and of their short codes, in memory or memory-mapped, scanned by FAISS.

Guarantees: rows never move during a search. A scan finds only rows that are marked alive.
Out of scope: locking (see searcher.py) and the meaning of the ids.

FAISS's own `add` may reallocate memory during a search, and its `remove_ids` shifts rows. Therefore NumPy allocates the
memory in advance and FAISS only borrows it. New rows are written after those that searches can see, and a removed row
is only flagged.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS
from index.search.segment_file import SegmentFile

SEGMENT_ROWS = 8192  # at most; a slot of a view has room for as many
TAIL_ROWS = 1024  # of a segment to which single rows are appended; its rows are in memory
ROW_BYTES = 2 * DIMENSIONS
# FAISS's type stubs describe the C++ signatures, which the Python package changes.
_faiss: Any = faiss

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Scanner(Protocol):
    """A search over the blocks of a code. A device can scan instead of the processor: see `Code.scanner`."""

    @property
    def blocks(self) -> tuple[CodeBlock, ...]:
        """The blocks, by number."""

    def search(
        self, queries: NDArray[Any], k: int, part: range, alive: Sequence[NDArray[np.bool_]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Search in the blocks with the numbers in `part`. alive: flags of the rows of all blocks.

        queries: from `Code.query`. k: at most the number of live rows in these blocks. Returns estimated distances,
        numbers of blocks, and numbers of rows, each [n, k], in any order.
        """


class Code(Protocol):
    """A short code for rows."""

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows, float16 [n, 4096] -> uint8 [n, width]."""

    def query(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        """Convert queries, float32 [n, 4096], to what the search of `scanner` expects."""

    def allocate(self, capacity: int) -> tuple[Any, NDArray[np.uint8]]:
        """Return an object of FAISS for the codes of `capacity` rows, and its memory, which is 0 and never moves."""

    def write(self, memory: NDArray[np.uint8], start: int, codes: NDArray[np.uint8]) -> None:
        """Write codes, uint8 [n, width], to the memory of a block from row `start` on."""

    def read(self, memory: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the codes of some rows of a block, uint8 [n, width]."""

    def scanner(self, blocks: Sequence[CodeBlock]) -> Scanner:
        """Return a search over some blocks."""


class CodeBlock:
    """The codes of a segment's rows, in the same order. memory: valid as long as the block exists."""

    def __init__(self, code: Code, capacity: int) -> None:
        self.code, self.count, self.capacity = code, 0, capacity
        self.holder, self.memory = code.allocate(capacity)

    def append(self, rows: NDArray[np.float16]) -> None:
        """Append the codes of more rows."""
        if len(rows):
            self._append(self.code.encode(rows))

    @classmethod
    def of(cls, parts: Sequence[tuple[CodeBlock, NDArray[np.int64]]]) -> Self:
        """Return a full block with the codes of some rows of other blocks of the same code, in this order."""
        block = cls(parts[0][0].code, sum(len(rows) for _, rows in parts))
        for other, rows in parts:
            block._append(block.code.read(other.memory, rows))
        return block

    def restore(self, memory: NDArray[np.uint8]) -> None:
        """Fill an empty block with the memory of a full one of the same size."""
        self.memory[...] = memory.reshape(self.memory.shape)
        self.count = self.capacity

    def _append(self, codes: NDArray[np.uint8]) -> None:
        self.code.write(self.memory, self.count, codes)
        self.count += len(codes)


class Segment:
    """A block of rows. Rows are only appended, in ascending order of their ids.

    One thread at a time may append; any number may search meanwhile.
    """

    def __init__(self, capacity: int, file: SegmentFile | None = None) -> None:
        """file: has all rows, so nothing can be appended; None keeps the rows in memory."""
        self.capacity = capacity
        self.count = self.dead = 0 if file is None else capacity
        self.ids = np.zeros(capacity, dtype=np.int64) if file is None else file.ids
        self.alive = np.zeros(capacity, dtype=np.bool_)
        self.blocks: dict[str, CodeBlock] = {}
        self.identity: object = object()  # the same for a segment that replaces this one with equal rows
        self.file = file
        memory = np.zeros(capacity * ROW_BYTES, np.uint8) if file is None else file.rows
        self.rows: NDArray[np.float16] = memory.view(np.float16).reshape(capacity, DIMENSIONS)
        self._index = _over(memory)
        self._index.ntotal = self.count

    @classmethod
    def of_file(cls, file: SegmentFile, alive: NDArray[np.bool_]) -> Self:
        """Return a segment with the mapped rows of a file. alive: bool [n]."""
        segment = cls(len(file.ids), file)
        segment.alive[:] = alive
        segment.dead = segment.capacity - int(alive.sum())
        return segment

    @property
    def mapped(self) -> bool:
        """Whether the rows are in a file."""
        return self.file is not None

    @property
    def full(self) -> bool:
        """Whether no more rows can be appended."""
        return self.count == self.capacity

    @property
    def live(self) -> int:
        """Number of rows that were not removed."""
        return self.count - self.dead

    @property
    def mostly_dead(self) -> bool:
        """Whether it is full, and at most half of its rows are alive."""
        return self.full and 2 * self.dead >= self.capacity

    @property
    def bytes_in_memory(self) -> int:
        """Memory used, without mapped rows: the operating system caches and evicts those."""
        codes = sum(block.memory.nbytes + 8 * block.capacity for block in self.blocks.values())
        return codes + self.capacity * (9 + (0 if self.mapped else ROW_BYTES))

    def append(self, ids: NDArray[np.int64], rows: NDArray[np.float16]) -> None:
        """Append rows. They are not alive yet, so no search finds them."""
        end = self.count + len(ids)
        self.rows[self.count : end] = rows
        self.ids[self.count : end] = ids
        for block in self.blocks.values():
            block.append(self.rows[block.count : end])
        self.count = end
        self._index.ntotal = end

    def search(self, queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]) -> Found:
        """Return squared distances and row numbers, both [n, k]; -1 if fewer than `k` rows are alive."""
        distances, rows = self._index.search(queries, k, params=only(alive))
        return distances, rows


def find_row(segments: Sequence[Segment], starts: Sequence[int], vector_id: int) -> tuple[Segment, int] | None:
    """Return the segment and row of a live vector, or None. starts: the first id of each segment, ascending."""
    number = bisect.bisect_right(starts, vector_id) - 1
    if number >= 0:
        segment = segments[number]
        row = int(np.searchsorted(segment.ids[: segment.count], vector_id))
        if row < segment.count and segment.ids[row] == vector_id and segment.alive[row]:
            return segment, row
    return None


def to_float32(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    """Convert finite values exactly. NumPy's own conversion takes six times as long, because it handles NaN."""
    bits = rows.view(np.int16).astype(np.int32) << 13  # the mantissa and the exponent are in place, but not the sign
    bits &= np.array(0x8FFFE000, np.uint32).view(np.int32)  # the shift extended the sign to the left: keep one bit
    floats: NDArray[np.float32] = bits.view(np.float32)
    floats *= np.float32(2.0**112)  # the exponents of the two formats start at -15 and at -127
    return floats


def rows_nearest(
    rows: NDArray[np.float16], query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rank `rows`, float16 [n, 4096], by distance to a query: squared distances, ascending, and row numbers."""
    rows = np.ascontiguousarray(rows)
    index = _over(rows.view(np.uint8).reshape(-1))
    index.ntotal = len(rows)
    squared, numbers = index.search(query[np.newaxis], len(rows))
    return squared[0], numbers[0]


def lend(vector: Any, memory: NDArray[np.uint8]) -> None:
    """Make a FAISS vector use `memory`, which must outlive it; FAISS neither copies nor frees the memory."""
    pointer = _faiss.swig_ptr(memory)
    vector.is_owned = False
    vector.view_data = vector.c_ptr = pointer
    vector.view_size = vector.c_size = memory.nbytes


def only(alive: NDArray[np.bool_]) -> Any:
    """Return search parameters of FAISS that allow only the rows that are alive."""
    return _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little")))


def _over(memory: NDArray[np.uint8]) -> Any:
    """Return a FAISS index with no rows yet, over float16 rows in `memory`, uint8 [rows x 8192]."""
    index = _faiss.IndexScalarQuantizer(DIMENSIONS, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_L2)
    lend(index.codes, memory)
    return index
