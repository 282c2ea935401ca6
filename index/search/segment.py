"""Blocks of rows and of their short codes, in memory or in a mapped file, for FAISS to scan where they lie.

Promises: rows never move while a search reads them; a row that is not marked alive is found by no scan; a mapped block
has its room on the disk before the first row is written, and leaves no file behind, not even after a kill.
Does not: lock anything (the searcher does), know what the ids stand for.

FAISS's own `add` may move the memory under a running search, and its `remove_ids` shifts the rows behind. So the memory
is NumPy's, taken at once and lent to FAISS, rows are written behind those that searches can see, and removing one is
a flag.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS

SEGMENT_ROWS = 8192
ROW_BYTES = 2 * DIMENSIONS
# The type stubs are of the C++ signatures, not of what the Python package makes of them.
_faiss: Any = faiss

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Code(Protocol):
    """A way to make a row short. `width`: bytes of a code."""

    width: int

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows: float16 [n, 4096] -> uint8 [n, width]."""

    def query(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        """Return what `scanner`'s search takes for queries, float32 [n, 4096]."""

    def scanner(self, memory: NDArray[np.uint8]) -> Any:
        """Return an empty FAISS index over `memory`, uint8 [capacity, width]."""


class CodeBlock:
    """The codes of one segment's rows, in the same order."""

    def __init__(self, code: Code, capacity: int) -> None:
        self.code, self.count = code, 0
        self.memory: NDArray[np.uint8] = np.zeros((capacity, code.width), np.uint8)
        self._index = code.scanner(self.memory)

    def append(self, rows: NDArray[np.float16]) -> None:
        """Write the codes of further rows."""
        end = self.count + len(rows)
        if len(rows):
            self.memory[self.count : end] = self.code.encode(rows)
        self.count = end
        self._index.ntotal = end

    def search(self, queries: NDArray[Any], k: int, alive: NDArray[np.bool_]) -> Found:
        """Return estimated distances and row numbers, both [n, k], of queries that `Code.query` made."""
        distances, rows = self._index.search(queries, k, params=_only(alive))
        return distances.astype(np.float32, copy=False), rows


class Segment:
    """A block of rows; rows are only ever appended, in ascending order of their ids. One thread may, any may search."""

    def __init__(self, capacity: int, folder: Path | None = None) -> None:
        """folder: where a file without a name takes the rows; None keeps them in memory. Raises OSError."""
        self.capacity = capacity
        self.count = 0
        self.dead = 0
        self.ids = np.zeros(capacity, dtype=np.int64)
        self.alive = np.zeros(capacity, dtype=np.bool_)
        self.blocks: dict[str, CodeBlock] = {}
        self.mapped = folder is not None
        memory = np.zeros(capacity * ROW_BYTES, np.uint8) if folder is None else _map(capacity * ROW_BYTES, folder)
        self.rows: NDArray[np.float16] = memory.view(np.float16).reshape(capacity, DIMENSIONS)
        self._index = _over(memory)

    @property
    def bytes_in_memory(self) -> int:
        """What the process must hold: mapped rows are the system's to keep or drop."""
        codes = sum(block.memory.nbytes for block in self.blocks.values())
        return codes + self.capacity * (9 + (0 if self.mapped else ROW_BYTES))

    def append(self, ids: NDArray[np.int64], rows: NDArray[np.float16]) -> None:
        """Write rows behind the last one. They are not alive yet: no search finds them."""
        end = self.count + len(ids)
        self.rows[self.count : end] = rows
        self.ids[self.count : end] = ids
        for block in self.blocks.values():
            block.append(self.rows[block.count : end])
        self.count = end
        self._index.ntotal = end

    def search(self, queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]) -> Found:
        """Return squared distances and row numbers, both [n, k]; -1 where fewer than `k` rows are alive."""
        distances, rows = self._index.search(queries, k, params=_only(alive))
        return distances, rows

    def moved(self, folder: Path) -> Segment:
        """Return the same rows in a mapped file; the codes are shared. Nobody may append meanwhile. Raises OSError."""
        copy = Segment(self.capacity, folder)
        copy.append(self.ids[: self.count], self.rows[: self.count])
        copy.blocks = self.blocks
        return copy


def rows_nearest(
    rows: NDArray[np.float16], query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return squared distances from a query, float32 [4096], ascending, and numbers of `rows`, float16 [n, 4096]."""
    rows = np.ascontiguousarray(rows)
    index = _over(rows.view(np.uint8).reshape(-1))
    index.ntotal = len(rows)
    squared, numbers = index.search(query[np.newaxis], len(rows))
    return squared[0], numbers[0]


def lend(vector: Any, memory: NDArray[np.uint8]) -> None:
    """Make a FAISS vector read `memory`, which must live as long; FAISS neither copies nor frees it."""
    pointer = _faiss.swig_ptr(memory)
    vector.is_owned = False
    vector.view_data = vector.c_ptr = pointer
    vector.view_size = vector.c_size = memory.nbytes


def _only(alive: NDArray[np.bool_]) -> Any:
    return _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little")))


def _over(memory: NDArray[np.uint8]) -> Any:
    """Return a FAISS index, still of no rows, over float16 rows in `memory`, uint8 [rows x 8192]."""
    index = _faiss.IndexScalarQuantizer(DIMENSIONS, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_L2)
    lend(index.codes, memory)
    return index


def _map(size: int, folder: Path) -> NDArray[np.uint8]:
    with tempfile.TemporaryFile(dir=folder) as file:
        # Without its room a full disk would end the process at the first write into the mapping.
        os.posix_fallocate(file.fileno(), 0, size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
