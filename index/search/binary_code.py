"""The code of the search mode `codes`: bits computed by an auto-encoder, compared by Hamming distance with FAISS.

Out of scope: training the auto-encoder (see model_store/training/autoencoder.py) and loading it (see
model_store/code_store.py).
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

    def scanner(self, memory: NDArray[np.uint8]) -> Any:
        """Return an empty FAISS index over `memory`, uint8 [capacity, width]."""
        index = _faiss.IndexBinaryFlat(8 * self.width)
        lend(index.xb, memory)
        return index
