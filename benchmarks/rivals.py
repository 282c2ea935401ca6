"""Other libraries' graphs of neighbours, for benchmarks/search.py: hnswlib and usearch over the same vectors.

Promises: the same distance (squared Euclidean, all 4096 values) and the same numbers of links and of candidates
while building for both; hnswlib keeps float32, usearch float16.
Does not: choose their settings for them: they are the two libraries' usual ones, M = 16 and 100 candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.vectors import DIMENSIONS

NAMES = ("hnswlib", "usearch")
LINKS = 16
WHILE_BUILDING = 100
EFFORTS = (10, 20, 40, 80, 160, 320)  # candidates while searching: `ef`, `expansion_search`

# (queries float32 [n, 4096], k) -> rows' numbers, int64 [n, k]
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def build(name: str, blocks: Iterator[NDArray[np.float16]], size: int, path: Path, threads: int) -> None:
    """Build one library's index of `size` rows and write it to `path`. Raises ImportError without the library."""
    start = 0
    if name == "hnswlib":
        index = _hnswlib()
        index.init_index(max_elements=size, M=LINKS, ef_construction=WHILE_BUILDING)
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
    """Return an index that was built: how to set its effort, and its search."""
    if name == "hnswlib":
        index = _hnswlib()
        index.load_index(str(path))
        index.set_num_threads(threads)
        return index.set_ef, lambda queries, k: index.knn_query(queries, k)[0].astype(np.int64)
    index = _usearch()
    index.load(str(path))

    def effort(candidates: int) -> None:
        index.expansion_search = candidates

    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        keys = index.search(queries.astype(np.float16), k, threads=threads).keys
        return np.asarray(keys).astype(np.int64).reshape(len(queries), -1)

    return effort, search


def _hnswlib() -> Any:
    import hnswlib  # noqa: PLC0415 - an extra

    return hnswlib.Index(space="l2", dim=DIMENSIONS)


def _usearch() -> Any:
    from usearch.index import Index  # noqa: PLC0415 - an extra

    return Index(
        ndim=DIMENSIONS, metric="l2sq", dtype="f16", connectivity=LINKS, expansion_add=WHILE_BUILDING, multi=False
    )
