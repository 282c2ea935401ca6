"""Measure candidate codes for `fast`: each code selects candidates, which are then compared exactly.

    python -m benchmarks.fast_codes VECTORS [--size 100000] [--queries 500] [--json FILE]

VECTORS is a folder as for `benchmarks.search`. All codes quantize the same 128 coordinates (see
index/search/product_code.py) and are trained on the same 8,192 random rows. They are also trained on rows of only half
of the classes, with the rows of the other half added afterwards: the recall of queries of these classes shows whether a
code must be trained again after additions.
Out of scope: the index itself (see `benchmarks.search`), deletions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.search.measure import recall
from benchmarks.search.vectors import read_vectors
from index.search.code_quality import Search, exact_search
from index.search.product_code import BYTES, COMPONENTS, SAMPLE, ProductCode
from index.search.segment import SEGMENT_ROWS, CodeBlock, rows_nearest

K = 10
CANDIDATES = (40, 100, 200)
CURRENT = "4 bits each, fast-scan (fc7 fast)"
LINKS = 16  # of the graph
LISTS = 256
_faiss: Any = faiss
_SQ8 = _faiss.ScalarQuantizer.QT_8bit


@dataclass(frozen=True, slots=True)
class Result:
    """The measurements of a code. recalls: of the 10 nearest, with 40, 100 and 200 candidates compared exactly.

    unseen: the same for queries of classes that the code was not trained on. p50: milliseconds of processor time
    of a query with 200 candidates, including the exact comparison. train_s, add_s: seconds to train it and to add all
    rows.
    """

    name: str
    bytes: int
    recalls: tuple[float, ...]
    unseen: tuple[float, ...]
    p50: float
    train_s: float
    add_s: float


@dataclass(frozen=True, slots=True)
class TrainedCode:
    """A trained code that holds all rows."""

    name: str
    bytes: int
    search: Search
    train_s: float
    add_s: float


def codes(rows: NDArray[np.float16], learn_from: NDArray[np.int64]) -> Iterator[TrainedCode]:
    """Train each code on a sample of the rows `learn_from`, and yield it with all rows, float16 [n, 4096]."""
    sample = np.sort(np.random.default_rng(0).permutation(learn_from)[:SAMPLE])
    started = time.perf_counter()
    code = ProductCode.train(rows[sample])
    trained = time.perf_counter() - started
    if code is None:  # only if training was cancelled
        return
    started = time.perf_counter()
    starts = range(0, len(rows), SEGMENT_ROWS)
    blocks = [CodeBlock(code, SEGMENT_ROWS) for _ in starts]
    for block, start in zip(blocks, starts, strict=True):
        block.append(rows[start : start + SEGMENT_ROWS])
    added = time.perf_counter() - started
    yield TrainedCode(CURRENT, BYTES + 8, _search_in(code, blocks), trained, added)
    started = time.perf_counter()
    coordinates = code.coordinates(rows)
    computed = time.perf_counter() - started
    for name, size, make in OTHERS:
        index = make()
        started = time.perf_counter()
        index.train(coordinates[sample])
        learned = time.perf_counter() - started
        started = time.perf_counter()
        index.add(coordinates)
        added = time.perf_counter() - started

        def search(queries: NDArray[np.float32], k: int, index: Any = index) -> NDArray[np.int64]:
            found: NDArray[np.int64] = index.search(code.query(queries), k)[1]
            return found

        yield TrainedCode(name, size, search, trained + learned, computed + added)


def _search_in(code: ProductCode, blocks: list[CodeBlock]) -> Search:
    scanner, alive = code.scanner(blocks), [np.ones(block.count, np.bool_) for block in blocks]

    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        distances, numbers, rows = scanner.search(code.query(queries), k, range(len(blocks)), alive)
        return np.take_along_axis(numbers * SEGMENT_ROWS + rows, np.argsort(distances, axis=1, kind="stable"), axis=1)

    return search


def _rabitq(bits: int) -> Any:
    return _faiss.IndexRaBitQFastScan(COMPONENTS, _faiss.METRIC_L2, 32, bits)


def _lists_of_rabitq() -> Any:
    index = _faiss.index_factory(COMPONENTS, f"IVF{LISTS},RaBitQfs")
    _faiss.extract_index_ivf(index).nprobe = LISTS // 8
    return index


def _graph() -> Any:
    index = _faiss.IndexHNSWSQ(COMPONENTS, _SQ8, LINKS)
    index.hnsw.efConstruction, index.hnsw.efSearch = 100, max(CANDIDATES)
    return index


# Name, bytes for each vector, and a function that makes the index of FAISS.
OTHERS: tuple[tuple[str, int, Callable[[], Any]], ...] = (
    ("8 bits each (PCA,SQ8)", COMPONENTS, lambda: _faiss.IndexScalarQuantizer(COMPONENTS, _SQ8, _faiss.METRIC_L2)),
    ("RaBitQ fast-scan, 1 bit", COMPONENTS // 8 + 8, lambda: _rabitq(1)),
    ("RaBitQ fast-scan, 4 bits", COMPONENTS // 2 + 20, lambda: _rabitq(4)),
    ("IVF256, RaBitQ fast-scan, 1 bit", COMPONENTS // 8 + 16, _lists_of_rabitq),
    ("HNSW16 over 8 bits each", COMPONENTS + 8 * LINKS + 16, _graph),
)


def measure(
    code: TrainedCode, rows: NDArray[np.float16], queries: NDArray[np.float32], truth: NDArray[np.int64]
) -> tuple[tuple[float, ...], float]:
    """Return the recalls, and the median milliseconds of processor time. truth: the 10 nearest rows, int64 [m, 10]."""
    print(f"{code.name}: trained in {code.train_s:.1f} s", file=sys.stderr, flush=True)
    largest = max(CANDIDATES)
    found = code.search(queries, largest)
    recalls = tuple(
        recall(
            np.stack([_nearest(rows, query, each[:count]) for query, each in zip(queries, found, strict=True)]), truth
        )
        for count in CANDIDATES
    )
    times = []
    for query in queries:
        started = time.thread_time()
        _nearest(rows, query, code.search(query[np.newaxis], largest)[0])
        times.append(time.thread_time() - started)
    return recalls, 1000 * float(np.median(times))


def main(arguments: list[str] | None = None) -> None:
    """Measure all codes and print a table."""
    parser = argparse.ArgumentParser(description="Compare codes for the search mode fast.")
    parser.add_argument("vectors", type=Path, help="folder of .npz or .npy vectors with classes")
    parser.add_argument("--size", type=int, default=100_000, help="number of rows to search in")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    vectors = read_vectors(given.vectors, given.queries)
    rows, classes = vectors.rows[: given.size], vectors.classes[: given.size]
    queries = vectors.queries.astype(np.float32)
    truth = exact_search(rows.astype(np.float32))(queries, K)
    known = np.unique(classes)
    old = np.flatnonzero(np.isin(classes, known[: len(known) // 2]))
    # A query counts as one of an unseen class if most of its nearest rows are.
    new = np.flatnonzero(np.isin(classes[truth], known[len(known) // 2 :]).mean(axis=1) > 0.5)
    faiss.omp_set_num_threads(1)
    standard = [(code, *measure(code, rows, queries, truth)) for code in codes(rows, np.arange(len(rows)))]
    later = {
        code.name: measure(code, rows, queries[new], truth[new])[0] if len(new) else () for code in codes(rows, old)
    }
    results = [
        Result(code.name, code.bytes, recalls, later[code.name], p50, code.train_s, code.add_s)
        for code, recalls, p50 in standard
    ]
    print(
        f"{len(rows):,} vectors, {len(queries)} queries, {len(new)} of them of classes added later; "
        f"{len(os.sched_getaffinity(0))} cores, one used; load {os.getloadavg()[0]:.1f}\n"
    )
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n", encoding="utf-8")


def table(results: list[Result]) -> str:
    """Return the measurements as text, one per line."""
    several = "/".join(map(str, CANDIDATES))
    head = f"{'code':<38} {'bytes':>5}  {'recall@10 of ' + several:<24} {'classes added later':<24} {'p50 ms':>6} "
    lines = [head + f"{'train s':>9} {'add s':>7}"]
    for each in results:
        recalls, unseen = (" ".join(f"{value:.4f}" for value in values) for values in (each.recalls, each.unseen))
        lines.append(
            f"{each.name:<38} {each.bytes:>5}  {recalls:<24} {unseen:<24} {each.p50:>6.2f} {each.train_s:>9.1f} "
            f"{each.add_s:>7.1f}"
        )
    return "\n".join(lines)


def _nearest(rows: NDArray[np.float16], query: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the 10 nearest candidates; -1 is not a candidate."""
    candidates = candidates[candidates >= 0]
    return candidates[rows_nearest(rows[candidates], query)[1][:K]]


if __name__ == "__main__":
    main()
