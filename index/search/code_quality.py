"""Measure the quality of short codes: compare their neighbors with the exact ones, at the same code size.

Guarantees: queries are vectors of the evaluation set, and each is excluded from its own results. All codes are trained
on the same vectors and rank all of them for the same queries. Exact neighbors come from FAISS's flat float32 index.
Out of scope: training auto-encoders (the caller passes their bits), and choosing a code.
References: FAISS's index factory; Gong and Lazebnik 2011 (ITQ); Gao and Long 2024 (RaBitQ).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.product_code import principal_axes

EXACT: Final = 10  # exact neighbors for recall
NEAREST: Final = 6  # neighbors for class precision, as in the paper's figure 4
WIDE: Final = 100
_TIMED_QUERIES: Final = 100
_RABITQ_EXTRA: Final = 8  # bytes of factors in addition to one bit for each dimension
_TRAIN_ROWS: Final = 16_384  # rows on which the codes of FAISS are trained
_COMPONENTS: Final = 256
_CENTROIDS: Final = 256
_OPQ_ROUNDS: Final = 10
_PQ_ROUNDS: Final = 10
_faiss: Any = faiss

# Search among encoded rows: (queries float32 [m, d], k) -> row numbers, int64 [m, k], nearest first.
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class CodeQuality:
    """Quality of a code. Recalls, precision and mAP are from 0 to 1; precision and mAP are None without classes.

    recall: share of the 10 exact neighbors among its first 10 results; recall_wide: among its first 100. precision:
    share of the query's class among its first 6. queries_per_second: one query at a time on one core, with encoding.
    """

    name: str
    bytes: int
    recall: float
    recall_wide: float
    precision: float | None
    mean_average_precision: float | None
    queries_per_second: float


@dataclass(frozen=True, slots=True)
class StandardCode:
    """A code of FAISS with encoded rows."""

    name: str
    search: Search


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The data for measuring codes. vectors: float32 [n, d]; classes: int64 [n] or None; queries: row numbers."""

    vectors: NDArray[np.float32]
    classes: NDArray[np.int64] | None
    queries: NDArray[np.int64]

    def exact(self) -> NDArray[np.int64]:
        """Return the row numbers of the 10 exact neighbors of each query, without itself: int64 [q, 10]."""
        return _without(exact_search(self.vectors)(self.vectors[self.queries], EXACT + 1), self.queries)[:, :EXACT]


def measure_code(
    name: str,
    size: int,
    search: Search,
    data: EvaluationSet,
    exact: NDArray[np.int64],
    *,
    rows: NDArray[np.float32] | None = None,
) -> CodeQuality:
    """Measure one code. size: bytes for each row. rows: the inputs of the code, by default the vectors of `data`."""
    rows = data.vectors if rows is None else rows
    queries = rows[data.queries]
    timed = queries[:_TIMED_QUERIES]
    with _one_thread():
        search(timed[:1], EXACT)
        started = time.perf_counter()
        for query in timed:
            search(query[np.newaxis], EXACT)
        rate = len(timed) / (time.perf_counter() - started)
    order = _without(search(queries, len(rows)), data.queries)
    precision = average = None
    if data.classes is not None:
        same_class = data.classes[order] == data.classes[data.queries][:, np.newaxis]
        precision = float(same_class[:, :NEAREST].mean())
        hits = np.cumsum(same_class, axis=1)
        ranks = np.arange(1, order.shape[1] + 1)
        some = hits[:, -1] > 0
        sums = (hits / ranks * same_class).sum(axis=1)
        average = float((sums[some] / hits[some, -1]).mean()) if some.any() else 0.0
    return CodeQuality(
        name, size, _recall(order[:, :EXACT], exact), _recall(order[:, :WIDE], exact), precision, average, rate
    )


def exact_search(rows: NDArray[np.float32]) -> Search:
    """Return an exhaustive search by Euclidean distance."""
    index = _faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    return lambda queries, k: index.search(queries, k)[1]


def hamming_search(bits: NDArray[np.bool_], encode: Callable[[NDArray[np.float32]], NDArray[np.bool_]]) -> Search:
    """Return a search by Hamming distance among the rows' bits, bool [n, bits]; `encode` converts queries."""
    index = _faiss.IndexBinaryFlat(bits.shape[1])
    index.add(np.packbits(bits, axis=1, bitorder="little"))
    return lambda queries, k: index.search(np.packbits(encode(queries), axis=1, bitorder="little"), k)[1]


def standard_codes(rows: NDArray[np.float32], bits: int) -> Iterator[StandardCode]:
    """Yield each code of FAISS with `rows`, float32 [n, d], encoded with this number of bits.

    They are trained on at most 16,384 random rows. A code that needs more rows or bits is omitted.
    """
    chosen = np.random.default_rng(0).permutation(len(rows))[:_TRAIN_ROWS]
    mean = rows[chosen].mean(axis=0)
    # The largest number of components that any code needs: one for each bit for ITQ, half as many for PQ.
    axes = principal_axes(rows[chosen] - mean, min(max(_COMPONENTS, bits), len(chosen) - 1))
    components = np.concatenate([(part - mean) @ axes for part in np.array_split(rows, -(-len(rows) // _TRAIN_ROWS))])

    def build(name: str, width: int, make: Callable[[NDArray[np.float32]], Any]) -> StandardCode:
        with _one_thread():  # the parts are so small that threads would mostly wait for each other
            sample = np.ascontiguousarray(components[chosen, :width])
            index = make(sample)
            index.train(sample)
        index.add(np.ascontiguousarray(components[:, :width]))
        first = np.ascontiguousarray(axes[:, :width])
        return StandardCode(name, lambda queries, k: index.search((queries - mean) @ first, k)[1])

    signs = _faiss.IndexLSH(rows.shape[1], bits)
    signs.add(rows - mean)
    yield StandardCode("sign-LSH", lambda queries, k: signs.search(queries - mean, k)[1])
    recipes: list[tuple[str, int, Callable[[NDArray[np.float32]], Any]]] = []
    if components.shape[1] >= bits:
        recipes.append(("PCA+ITQ", bits, lambda _: _faiss.index_factory(bits, f"ITQ{bits},LSH")))
    width = max(_COMPONENTS, bits // 2)
    if len(chosen) >= _CENTROIDS and components.shape[1] >= width:
        recipes.append(("OPQ+PQ", width, lambda sample: _products(sample, bits // 8, 8)))
        recipes.append(("OPQ+PQ fast-scan", width, lambda sample: _products(sample, bits // 4, 4)))
    dimensions = min(bits - 8 * _RABITQ_EXTRA, components.shape[1])
    if dimensions > 0:
        # A random rotation spreads the information evenly over the bits.
        recipes.append(("RaBitQ", dimensions, lambda _: _faiss.index_factory(dimensions, f"RR{dimensions},RaBitQ")))
    for name, components_used, make in recipes:
        yield build(name, components_used, make)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit FAISS to one thread within the block."""
    threads = _faiss.omp_get_max_threads()
    _faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        _faiss.omp_set_num_threads(threads)


def _products(sample: NDArray[np.float32], parts: int, bits: int) -> Any:
    """Return a product quantizer with `parts` codes of 4 or 8 bits, after its trained rotation (OPQ)."""
    width = sample.shape[1]
    # The rotation is trained with a quantizer like the index's: one with 256 centroids would not suit 16.
    learner = _faiss.ProductQuantizer(width, parts, bits)
    index = _faiss.IndexPQ(width, parts, 8) if bits == 8 else _faiss.IndexPQFastScan(width, parts, bits)
    for quantizer in (learner, index.pq):
        quantizer.cp.niter = _PQ_ROUNDS
        quantizer.cp.min_points_per_centroid = 1  # otherwise FAISS prints a warning for each part
    rotation = _faiss.OPQMatrix(width, parts)
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = _OPQ_ROUNDS, 4, _PQ_ROUNDS
    rotation.pq = learner
    rotation.train(sample)
    rotation.pq = None  # `learner` is freed when this function returns
    return _faiss.IndexPreTransform(rotation, index)


def _recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))


def _without(order: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row of results without the query's own number, or without its last one if that is not in it."""
    keep = order != own[:, np.newaxis]
    keep[keep.all(axis=1), -1] = False
    others: NDArray[np.int64] = order[keep].reshape(len(order), -1)
    return others
