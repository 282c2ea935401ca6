"""Search on Milvus: rank the candidates that Milvus finds by exact distance, and find near-duplicates.

Guarantees: distances are computed here from the stored vectors, so they are exact, and the distance of an image's own
vector is 0. Equal distances are ordered by key, also at the end of a result, unless more than 4,096 images have the
same distance.
Out of scope: checking the arguments (index.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.duplicates import Duplicates, NearImage, describe_groups, rank
from index.errors import IndexLimitError, ModeUnavailableError
from index.interface import Answers, Neighbours, SearchOptions
from index.milvus.client import Milvus
from index.milvus.schema import Row, id_of, ids_in, key_of, vector_of
from index.records import Neighbour, VectorModel, check_key
from index.search.duplicates import NearGroups, near_groups
from index.search.searcher import Mode
from index.search.segment import Segment
from index.search.view import View

MAX_K = 2000
_MAX_COMPARED = 100_000
_MAX_CANDIDATES = 4096  # 67 MB with their vectors; Milvus sends 100 MB at most
_PAGE = 1000  # rows in a call and in a segment
_ROW_BATCH = 2048  # 16 KB each
_EXTRA_CANDIDATES = 8  # beyond k, to detect equal distances at the end of the result
_FIELDS = ["id", "metadata", "vector"]
_DESCRIPTION = ["sha256", "size", "width", "height", "added"]


def nearest(
    milvus: Milvus, collection: str, queries: NDArray[np.float16], k: int, *, where: str, index_type: str
) -> list[list[Neighbour]]:
    """Return the `k` nearest images that match `where` for each query, float16 [n, 4096]."""
    exact = index_type == "FLAT"
    count = k + _EXTRA_CANDIDATES if exact else 2 * k + 64
    batch = max(1, _ROW_BATCH // count)
    results: list[list[Neighbour]] = []
    for start in range(0, len(queries), batch):
        vectors = queries[start : start + batch].astype(np.float32)
        params = _search_params(index_type, count)
        found = milvus.search(collection, list(vectors), _FIELDS, limit=count, where=where, params=params)
        for query, first_rows in zip(vectors, found, strict=True):
            rows, limit = first_rows, count
            while exact and len(rows) == limit < _MAX_CANDIDATES and _may_tie(query, rows, k):
                limit = min(4 * limit, _MAX_CANDIDATES)
                [rows] = milvus.search(collection, [query], _FIELDS, limit=limit, where=where, params={})
            results.append(_rank(query, rows, k))
    return results


def search(
    milvus: Milvus,
    collection: str,
    queries: NDArray[np.float16],
    k: int,
    *,
    model: VectorModel,
    condition: str,
    options: SearchOptions,
) -> Answers:
    """Return the `k` nearest images of each query. condition: the expression of the filter.

    Raises ModeUnavailableError.
    """
    index_type = milvus.index_type(collection)
    mode = resolve_mode(model, index_type, options.mode)
    excluded = [id_of(check_key(key)) for key in options.exclude]
    parts = [condition, f"not ({ids_in(excluded)})" if excluded else ""]
    where = " and ".join(part for part in parts if part)
    found = nearest(milvus, collection, queries, k, where=where, index_type=index_type)
    return [Neighbours(options.shorten(neighbours), mode) for neighbours in found]


def find_duplicates(
    milvus: Milvus,
    collection: str,
    where: str,
    threshold: float,
    limit: int,
    *,
    images: int,
    stopped: Callable[[], bool],
) -> Duplicates:
    """Return groups of the images that match `where`, linked by pairs at most `threshold` apart, the largest first."""
    found_images: list[NearImage] = []
    view: View = []
    for rows in milvus.pages(collection, ["id", "vector", *_DESCRIPTION], size=_PAGE, where=where):
        if stopped():
            return describe_groups(NearGroups([], stopped=True, shortened=False), {})
        segment = Segment(len(rows))
        numbers = np.arange(len(found_images), len(found_images) + len(rows))
        segment.append(numbers, np.stack([vector_of(row) for row in rows]))
        segment.alive[:] = True
        view.append((segment, segment.alive))
        found_images += [NearImage.from_row([key_of(row["id"]), *(row[name] for name in _DESCRIPTION)]) for row in rows]
        if len(found_images) > _MAX_COMPARED:
            raise IndexLimitError(
                f"More than {_MAX_COMPARED:,} images would have to be compared: use a filter", _MAX_COMPARED
            )

    def keep(numbers: list[int]) -> int:
        return min(numbers, key=lambda number: rank(found_images[number]))

    found = near_groups(view, threshold, groups=limit, vectors=images, keep=keep, stopped=stopped)
    return describe_groups(found, dict(enumerate(found_images)))


def resolve_mode(model: VectorModel, index_type: str, requested: Mode | None) -> Mode:
    """Return the mode in which a collection with this type of Milvus index is searched. Raises ModeUnavailableError."""
    if requested == "codes":
        raise ModeUnavailableError("codes", model.model, reason="An index on Milvus has no binary codes")
    if requested == "exact" and index_type != "FLAT":
        reason = f"The collection's index on Milvus is {index_type}, not FLAT"
        raise ModeUnavailableError("exact", model.model, reason=reason)
    return "exact" if index_type == "FLAT" else "fast"


def _search_params(index_type: str, count: int) -> Row:
    """Return how thoroughly an approximate index searches; each type of index has its own parameter for it."""
    if index_type.startswith("HNSW"):
        return {"ef": max(128, 2 * count)}
    if index_type.startswith("IVF"):
        return {"nprobe": 64}
    if index_type == "DISKANN":
        return {"search_list": max(128, 2 * count)}
    return {}


def _may_tie(query: NDArray[np.float32], rows: list[Row], k: int) -> bool:
    """Return whether images that Milvus left out may be as near as the `k`-th one."""
    squared = sorted(_squared_distances(query, rows))
    slack = 1e-5 * float(query @ query) + 1e-4  # equal distances may differ by this much in Milvus's float32
    return squared[-1] <= squared[k - 1] + slack


def _squared_distances(query: NDArray[np.float32], rows: list[Row]) -> list[float]:
    if not rows:
        return []
    difference = np.asarray([row["vector"] for row in rows], np.float64) - query
    return [float(value) for value in np.einsum("ij,ij->i", difference, difference)]


def _rank(query: NDArray[np.float32], rows: list[Row], k: int) -> list[Neighbour]:
    ranked = sorted(
        (float(np.sqrt(squared)), key_of(row["id"]), row["metadata"])
        for squared, row in zip(_squared_distances(query, rows), rows, strict=True)
    )
    return [Neighbour(key, distance, json.loads(text)) for distance, key, text in ranked[:k]]
