"""Collect labeled vectors, at most a fixed number of them: as many of each class as fit, chosen at random.

Guarantees: the choice depends only on the keys, not on the order in which images are added.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_IMAGES: Final = 10_000  # 80 MB as they are stored, and about ten seconds with few classes
_SALT: Final = b"fc7"


class LabelledSample:
    """Labeled vectors. total: how many were added. labels: those that are kept."""

    def __init__(self, most: int = MAX_IMAGES) -> None:
        self._most, self.total = most, 0
        self._turns: list[int] = []
        self._vectors: list[NDArray[np.float16]] = []
        self.labels: list[str] = []

    def add(self, keys: Sequence[str], labels: Sequence[str], vectors: NDArray[np.float16]) -> None:
        """Add images: vectors is float16 [n, 4096]."""
        self.total += len(keys)
        self._turns += [zlib.crc32(key.encode(errors="surrogatepass"), zlib.crc32(_SALT)) for key in keys]
        self.labels += labels
        self._vectors += list(vectors.copy())
        if len(self.labels) > 2 * self._most:
            self._thin()

    def vectors(self) -> NDArray[np.float16]:
        """Return the vectors that are kept, float16 [n, 4096], in the order of `labels`."""
        self._thin()
        return np.stack(self._vectors) if self._vectors else np.zeros((0, 0), np.float16)

    def _thin(self) -> None:
        """Keep the images with the lowest ranks within their classes. Those that are dropped cannot be needed later."""
        if len(self.labels) <= self._most:
            return
        ranks = np.empty(len(self.labels), np.int64)
        seen: Counter[str] = Counter()
        for number in np.argsort(self._turns, kind="stable").tolist():
            ranks[number] = seen[self.labels[number]]
            seen[self.labels[number]] += 1
        kept = np.sort(np.lexsort((np.array(self._turns), ranks))[: self._most]).tolist()
        self._turns = [self._turns[number] for number in kept]
        self.labels = [self.labels[number] for number in kept]
        self._vectors = [self._vectors[number] for number in kept]
