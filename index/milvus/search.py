"""The nearest images, out of the candidates that Milvus finds; and pairs that are nearly the same.

Promises: distances are computed here from the stored vectors, so they are exact and an image's own vector is at 0;
equal distances are ordered by key, also at the end of an answer (unless more than 4,096 images are as near).
Does not: check what is asked (milvus.py does).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.errors import IndexLimitError
from index.interface import Answers, Neighbours, Pairs
from index.milvus.client import Milvus
from index.milvus.schema import Row, key_of, vector_of
from index.records import NearPair, Neighbour
from index.search.duplicates import near_pairs
from index.search.segment import Segment

MOST_NEAREST = 2000
MOST_COMPARED = 100_000
_MOST_CANDIDATES = 4096  # with their vectors 67 MB; Milvus answers 100 MB at most
_PAGE = 1000
_ROWS_AT_ONCE = 2048  # 16 KB each
_BEYOND = 8
_FIELDS = ["id", "metadata", "vector"]


def nearest(
    milvus: Milvus, collection: str, queries: NDArray[np.float16], k: int, *, where: str, index_type: str
) -> Answers:
    """Return the `k` nearest images, of those for which `where` is true, to each query, float16 [n, 4096]."""
    exact = index_type == "FLAT"
    want = k + _BEYOND if exact else 2 * k + 64
    at_once = max(1, _ROWS_AT_ONCE // want)
    answers: Answers = []
    for start in range(0, len(queries), at_once):
        some = queries[start : start + at_once].astype(np.float32)
        found = milvus.search(
            collection, list(some), _FIELDS, limit=want, where=where, params=_effort(index_type, want)
        )
        for query, first in zip(some, found, strict=True):
            rows, asked = first, want
            while exact and len(rows) == asked < _MOST_CANDIDATES and _tied(query, rows, k):
                asked = min(4 * asked, _MOST_CANDIDATES)
                [rows] = milvus.search(collection, [query], _FIELDS, limit=asked, where=where, params={})
            answers.append(_ranked(query, rows, k))
    return answers


def near_pairs_of(
    milvus: Milvus, collection: str, where: str, threshold: float, limit: int, *, stopped: Callable[[], bool]
) -> Pairs:
    """Return the nearest `limit` pairs at most `threshold` apart, of the images for which `where` is true."""
    ids: list[str] = []
    parts: list[NDArray[np.float16]] = []
    for rows in milvus.pages(collection, ["id", "vector"], size=_PAGE, where=where):
        if stopped():
            return []
        ids += [row["id"] for row in rows]
        parts.append(np.stack([vector_of(row) for row in rows]))
        if len(ids) > MOST_COMPARED:
            raise IndexLimitError(f"More than {MOST_COMPARED:,} images are to be compared: use a filter", MOST_COMPARED)
    segment = Segment(max(1, len(ids)))
    first = 0
    for part in parts:
        segment.append(np.arange(first, first + len(part), dtype=np.int64), part)
        first += len(part)
    segment.alive[:first] = True
    pairs = near_pairs([(segment, segment.alive)], threshold, limit, stopped)
    return [NearPair(key_of(ids[first]), key_of(ids[second]), distance) for distance, first, second in pairs]


def _effort(index_type: str, want: int) -> Row:
    """Return how far an approximate index is to look: what Milvus's kinds of index ask for by different names."""
    if index_type.startswith("HNSW"):
        return {"ef": max(128, 2 * want)}
    if index_type.startswith("IVF"):
        return {"nprobe": 64}
    if index_type == "DISKANN":
        return {"search_list": max(128, 2 * want)}
    return {}


def _tied(query: NDArray[np.float32], rows: list[Row], k: int) -> bool:
    """Tell whether images beyond the last row may be as near as the `k`-th one."""
    squared = sorted(_squared(query, rows))
    slack = 1e-5 * float(query @ query) + 1e-4  # what Milvus's float32 may have made of equal distances
    return squared[-1] <= squared[k - 1] + slack


def _squared(query: NDArray[np.float32], rows: list[Row]) -> list[float]:
    if not rows:
        return []
    difference = np.asarray([row["vector"] for row in rows], np.float64) - query
    return [float(value) for value in np.einsum("ij,ij->i", difference, difference)]


def _ranked(query: NDArray[np.float32], rows: list[Row], k: int) -> Neighbours:
    ranked = sorted(
        (float(np.sqrt(squared)), key_of(row["id"]), row["metadata"])
        for squared, row in zip(_squared(query, rows), rows, strict=True)
    )
    return [Neighbour(key, distance, json.loads(text)) for distance, key, text in ranked[:k]]
