"""The code of the search mode `codes`: bits computed by an auto-encoder, compared by Hamming distance with FAISS.

Out of scope: training the auto-encoder (see model_store/training/autoencoder.py) and loading it (see
model_store/code_store.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.segment import CodeBlock, lend, only
from model_store.code_store import BinaryEncoder

_faiss: Any = faiss


class BinaryCode:
    """The codes of one encoder. width: bytes of a code, an eighth of its bits."""

    def __init__(self, encoder: BinaryEncoder) -> None:
        self._encoder = encoder
        self.width = encoder.width

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows, float16 [n, 4096] -> uint8 [n, width]."""
        return self._encoder.encode(rows)

    def query(self, queries: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes of queries, float32 [n, 4096] -> uint8 [n, width]."""
        return self._encoder.encode(queries)

    def allocate(self, capacity: int) -> tuple[Any, NDArray[np.uint8]]:
        """Return a FAISS index for `capacity` rows, and its memory, uint8 [capacity, width]."""
        memory = np.zeros((capacity, self.width), np.uint8)
        index = _faiss.IndexBinaryFlat(8 * self.width)
        lend(index.xb, memory)
        index.ntotal = capacity
        return index, memory

    def write(self, memory: NDArray[np.uint8], start: int, codes: NDArray[np.uint8]) -> None:
        """Write codes, uint8 [n, width], to the memory of a block from row `start` on."""
        memory[start : start + len(codes)] = codes

    def read(self, memory: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the codes of some rows of a block, uint8 [n, width]."""
        return memory[rows]

    def scanner(self, blocks: Sequence[CodeBlock]) -> Scanner:
        """Return a search over some blocks."""
        return Scanner(tuple(blocks))


@dataclass(frozen=True, slots=True)
class Scanner:
    """Searches in blocks of codes, one after the other. Any number of threads can search."""

    blocks: tuple[CodeBlock, ...]

    def search(
        self, queries: NDArray[np.uint8], k: int, part: range, alive: Sequence[NDArray[np.bool_]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Search in the blocks with the numbers in `part`: see `index.search.segment.Scanner`."""
        distances, numbers, rows = [], [], []
        for number in part:
            count = min(k, int(alive[number].sum()))
            if count:
                found = self.blocks[number].holder.search(queries, count, params=only(alive[number]))
                distances.append(found[0].astype(np.float32))
                numbers.append(np.full(found[1].shape, number))
                rows.append(found[1])
        return np.hstack(distances), np.hstack(numbers), np.hstack(rows)
