"""The final ranking: exact distances of candidates to a query.

Guarantees: distances are computed in float64; a vector equal to the query has distance 0.
Out of scope: finding the candidates (see searcher.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.search.segment import rows_nearest, to_float32
from index.search.view import View, ids_at, rows_at

# Rounding in float32 can swap neighbors whose squared distances differ by less than this share.
TIE = 1e-5
_RANK_BATCH = 32  # rows of 4,096 float64 values that fit into the processor's cache


@dataclass(frozen=True, slots=True)
class Hits:
    """Results of one query: vector ids and distances (float64), nearest first; equal distances by id.

    Distances are Euclidean; in the mode `codes` they are Hamming distances.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]


def ids_of(hits: list[Hits]) -> list[int]:
    """Return the vector ids of several results, ascending, each once."""
    return sorted({int(number) for hit in hits for number in hit.ids})


def rank_candidates(view: View, query: NDArray[np.float32], slots: NDArray[np.int64], k: int) -> Hits:
    """Return the `k` nearest of many candidates, and all that tie with the last one."""
    slots = np.sort(slots)  # memory is read in order
    rows = rows_at(view, slots)
    # Distances in float32 take a tenth of the time of float64, and leave few candidates.
    squared, found = rows_nearest(rows, query)
    found = found[: np.searchsorted(squared, squared[min(k, len(squared)) - 1] * (1 + TIE), side="right")]
    return _sort(ids_at(view, slots[found]), _distances(rows[found], query), k)


def rank(view: View, query: NDArray[np.float32], slots: NDArray[np.int64], k: int) -> Hits:
    """Sort candidates by distance in float64; keep the first `k` and all that tie with the last of them."""
    return _sort(ids_at(view, slots), _distances(rows_at(view, slots), query), k)


def _distances(rows: NDArray[np.float16], query: NDArray[np.float32]) -> NDArray[np.float64]:
    squared = np.empty(len(rows))
    for start in range(0, len(rows), _RANK_BATCH):
        batch = slice(start, start + _RANK_BATCH)
        # float32 is precise enough for differences of float16 values, but not for the sum of their squares.
        differences = (to_float32(rows[batch]) - query).astype(np.float64)
        squared[batch] = np.einsum("ij,ij->i", differences, differences)
    return np.sqrt(squared)


def _sort(ids: NDArray[np.int64], distances: NDArray[np.float64], k: int) -> Hits:
    order = np.lexsort((ids, distances))
    ids, distances = ids[order], distances[order]
    keep = int(np.searchsorted(distances, distances[min(k, len(distances)) - 1], side="right"))
    return Hits(ids[:keep], distances[:keep])
