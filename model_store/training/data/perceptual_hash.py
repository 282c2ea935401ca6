"""Perceptual hashes of pictures: copies that were scaled, compressed again or slightly changed have similar hashes.

A hash has 256 bits: the signs of the 16x16 lowest frequencies of the gray picture (a discrete cosine transform of
32x32 pixels), relative to their median.

Guarantees: `near_pairs` finds all pairs within the limit that share a group. Of pictures with the same hash, only the
first one is compared with others. The time grows with the square of the number of different hashes in a group.
Out of scope: copies that were cropped, mirrored or rotated.
References: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010 (section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BYTES: Final = 32
NEAR_BITS: Final = 20
"""Largest number of different bits of two near-identical pictures."""
_SIDE: Final = 32  # pixels
_KEPT: Final = 16  # frequencies in each direction
_BLOCK: Final = 2_048  # hashes compared at a time
_COSINES: Final = np.cos(
    np.pi / _SIDE * np.outer(np.arange(_KEPT), np.arange(_SIDE) + 0.5)
).astype(np.float32)  # fmt: skip


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the hash of a prepared picture, uint8 [256, 256, 3], as uint8 [32]."""
    gray = Image.fromarray(pixels).convert("L").reduce(pixels.shape[0] // _SIDE)
    small = np.asarray(gray, np.float32)
    frequencies = (_COSINES @ small @ _COSINES.T).ravel()
    # The first value is the mean brightness, which is far from the median of the others.
    return np.packbits(frequencies > np.median(frequencies[1:]))


def near_pairs(
    hashes: NDArray[np.uint8],
    groups: Sequence[Sequence[int]],
    limit: int = NEAR_BITS,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[int, int, int]]:
    """Yield (first, second, different bits) for all pairs of a group that differ in at most `limit` bits.

    Pictures with the same hash, such as thousands of empty ones, are only paired with the first of them.

    hashes: uint8 [n, 32]. groups: positions that are compared with each other, each group in ascending order.
    progress: called with the number of positions that were compared with all others of their group.
    """
    for group in groups:
        positions = np.asarray(group, np.int64)
        _, firsts, inverse = np.unique(hashes[positions], axis=0, return_index=True, return_inverse=True)
        same_as = firsts[inverse.reshape(-1)]
        for copy in np.flatnonzero(same_as != np.arange(len(positions))).tolist():
            yield int(positions[same_as[copy]]), int(positions[copy]), 0
        progress(len(positions) - len(firsts))
        positions = positions[np.sort(firsts)]
        signs = np.unpackbits(hashes[positions], axis=1).astype(np.float32) * 2 - 1
        for start in range(0, len(positions), _BLOCK):
            block = signs[start : start + _BLOCK]
            different = (signs.shape[1] - block @ signs[start:].T) / 2
            rows, columns = np.nonzero(np.triu(different <= limit, 1))
            bits = different[rows, columns].astype(np.int64)
            for row, column, count in zip(rows.tolist(), columns.tolist(), bits.tolist(), strict=True):
                yield int(positions[start + row]), int(positions[start + column]), count
            progress(len(block))


def connected(count: int, pairs: Iterator[tuple[int, int]]) -> NDArray[np.int64]:
    """Return, for each of `count` items, the smallest item that is linked to it by a chain of pairs, int64 [count]."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in pairs:
        one, other = root(first), root(second)
        parent[max(one, other)] = min(one, other)
    return np.array([root(item) for item in range(count)], np.int64)
