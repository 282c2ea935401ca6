"""The nearest vectors of each vector, by exact Euclidean distance.

Guarantees: memory is bounded by a block of 1,024 vectors. The time grows with the square of the number of vectors, up
to 50,000; beyond that, each vector is compared with 50,000 of them, chosen at random.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 1_024
_MOST: Final = 50_000
_SEED: Final = 0


def nearest(vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the distances, float32 [n, k], and positions, int64 [n, k], of the nearest other vectors, nearest first.

    vectors: float32 [n, d]. `k` is reduced to n - 1 if there are fewer vectors.
    """
    count = len(vectors)
    among = np.arange(count)
    if count > _MOST:
        among = np.sort(np.random.default_rng(_SEED).choice(count, _MOST, replace=False))
    reference = vectors[among]
    k = min(k, len(among) - 1)
    squares = np.square(reference).sum(1)
    distances, positions = np.zeros((count, k), np.float32), np.zeros((count, k), np.int64)
    for start in range(0, count if k else 0, _BLOCK):
        block = vectors[start : start + _BLOCK]
        squared = np.square(block).sum(1)[:, None] + squares - 2 * block @ reference.T
        squared[among == np.arange(start, start + len(block))[:, None]] = np.inf  # not itself
        best = np.argpartition(squared, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(squared, best, 1)
        order = np.argsort(values, axis=1, kind="stable")
        rows = slice(start, start + len(block))
        distances[rows] = np.sqrt(np.maximum(np.take_along_axis(values, order, 1), 0))
        positions[rows] = among[np.take_along_axis(best, order, 1)]
    return distances, positions
