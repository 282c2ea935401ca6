"""Segments: fixed-size blocks of vectors and of their short codes, in memory or memory-mapped, scanned by FAISS.

Guarantees: rows never move during a search. A scan finds only rows that are marked alive.
Out of scope: locking (see searcher.py) and the meaning of the ids.

FAISS's own `add` may reallocate memory during a search, and its `remove_ids` shifts rows. Therefore NumPy allocates the
memory in advance and FAISS only borrows it. New rows are written after those that searches can see, and a removed row
is only flagged.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS
from index.search.segment_file import SegmentFile

SEGMENT_ROWS = 8192
ROW_BYTES = 2 * DIMENSIONS
# FAISS's type stubs describe the C++ signatures, which the Python package changes.
_faiss: Any = faiss

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Code(Protocol):
    """A short code for rows. width: bytes of a code."""

    width: int

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows, float16 [n, 4096] -> uint8 [n, width]."""

    def query(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        """Convert queries, float32 [n, 4096], to what the search of `scanner` expects."""

    def scanner(self, memory: NDArray[np.uint8]) -> Any:
        """Return an empty FAISS index over `memory`, uint8 [capacity, width]."""


class CodeBlock:
    """The codes of a segment's rows, in the same order."""

    def __init__(self, code: Code, capacity: int, codes: NDArray[np.uint8] | None = None) -> None:
        """codes: of all rows, uint8 [capacity, width]; None if there are no rows yet."""
        self.code, self.count = code, 0 if codes is None else capacity
        self.memory: NDArray[np.uint8] = np.zeros((capacity, code.width), np.uint8) if codes is None else codes
        self._index = code.scanner(self.memory)
        self._index.ntotal = self.count

    def append(self, rows: NDArray[np.float16]) -> None:
        """Append the codes of more rows."""
        end = self.count + len(rows)
        if len(rows):
            self.memory[self.count : end] = self.code.encode(rows)
        self.count = end
        self._index.ntotal = end

    def search(self, queries: NDArray[Any], k: int, alive: NDArray[np.bool_]) -> Found:
        """Return estimated distances and row numbers, both [n, k]; `queries` come from `Code.query`."""
        distances, rows = self._index.search(queries, k, params=_only(alive))
        return distances.astype(np.float32, copy=False), rows


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
    def bytes_in_memory(self) -> int:
        """Memory used, without mapped rows: the operating system caches and evicts those."""
        codes = sum(block.memory.nbytes for block in self.blocks.values())
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
        distances, rows = self._index.search(queries, k, params=_only(alive))
        return distances, rows


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


def _only(alive: NDArray[np.bool_]) -> Any:
    return _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little")))


def _over(memory: NDArray[np.uint8]) -> Any:
    """Return a FAISS index with no rows yet, over float16 rows in `memory`, uint8 [rows x 8192]."""
    index = _faiss.IndexScalarQuantizer(DIMENSIONS, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_L2)
    lend(index.codes, memory)
    return index
