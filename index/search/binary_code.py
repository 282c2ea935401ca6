"""The code of the mode `codes`: bits that an auto-encoder makes, compared by how many differ, with FAISS.

Does not: train or load the auto-encoder (model_store/code_store.py loads it).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.segment import lend
from model_store.code_store import BinaryEncoder

_faiss: Any = faiss


class BinaryCode:
    """The codes of one encoder. width: bytes, an eighth of the bits."""

    def __init__(self, encoder: BinaryEncoder) -> None:
        self._encoder = encoder
        self.width = encoder.width

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows: float16 [n, 4096] -> uint8 [n, width]."""
        return self._encoder.encode(rows)

    def query(self, queries: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes of queries: float32 [n, 4096] -> uint8 [n, width]."""
        return self._encoder.encode(queries)

    def scanner(self, memory: NDArray[np.uint8]) -> Any:
        """Return an empty FAISS index over `memory`, uint8 [capacity, width]."""
        index = _faiss.IndexBinaryFlat(8 * self.width)
        lend(index.xb, memory)
        return index
