"""Approximate nearest neighbors with hnswlib and usearch over the same vectors, for comparison.

Guarantees: both use the squared Euclidean distance of all 4096 values, and the same build parameters, the usual ones of
these libraries (M = 16, 100 candidates). hnswlib stores float32, usearch float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.vectors import DIMENSIONS

NAMES = ("hnswlib", "usearch")
LINKS = 16
BUILD_CANDIDATES = 100
SEARCH_CANDIDATES = (10, 20, 40, 80, 160, 320)  # `ef` in hnswlib, `expansion_search` in usearch

# (queries float32 [n, 4096], k) -> row numbers, int64 [n, k]
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def build(name: str, blocks: Iterator[NDArray[np.float16]], size: int, path: Path, threads: int) -> None:
    """Build the index of a library with `size` rows and write it to `path`. Raises ImportError without the library."""
    start = 0
    if name == "hnswlib":
        index = _hnswlib()
        index.init_index(max_elements=size, M=LINKS, ef_construction=BUILD_CANDIDATES)
        index.set_num_threads(threads)
        for block in blocks:
            index.add_items(block.astype(np.float32), np.arange(start, start + len(block)))
            start += len(block)
        index.save_index(str(path))
    else:
        index = _usearch()
        for block in blocks:
            index.add(np.arange(start, start + len(block), dtype=np.uint64), block, threads=threads)
            start += len(block)
        index.save(str(path))


def load(name: str, path: Path, threads: int) -> tuple[Callable[[int], None], Search]:
    """Load an index. Return a function that sets the number of candidates, and the search function."""
    if name == "hnswlib":
        index = _hnswlib()
        index.load_index(str(path))
        index.set_num_threads(threads)
        return index.set_ef, lambda queries, k: index.knn_query(queries, k)[0].astype(np.int64)
    index = _usearch()
    index.load(str(path))

    def set_candidates(candidates: int) -> None:
        index.expansion_search = candidates

    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        keys = index.search(queries.astype(np.float16), k, threads=threads).keys
        return np.asarray(keys).astype(np.int64).reshape(len(queries), -1)

    return set_candidates, search


def _hnswlib() -> Any:
    import hnswlib  # noqa: PLC0415 - an extra

    return hnswlib.Index(space="l2", dim=DIMENSIONS)


def _usearch() -> Any:
    from usearch.index import Index  # noqa: PLC0415 - an extra

    return Index(
        ndim=DIMENSIONS, metric="l2sq", dtype="f16", connectivity=LINKS, expansion_add=BUILD_CANDIDATES, multi=False
    )
