"""How good short codes are: each one's neighbours against the exact ones, at the same number of bytes.

Promises: queries are vectors of the collection, each left out of its own answer; all codes are trained on the same
vectors and rank all of them for the same queries; the exact neighbours are FAISS's flat index over float32.
Does not: train auto-encoders (the caller hands their bits in), choose a code.
Source: FAISS's index factory; Gong and Lazebnik 2011 (ITQ); Gao and Long 2024 (RaBitQ).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.pca_code import principal_axes

EXACT: Final = 10  # neighbours whose recall is counted
NEAREST: Final = 6  # neighbours whose class is counted, as in the paper's figure 4
WIDE: Final = 100
STANDARD: Final = ("sign-LSH", "PCA+ITQ", "OPQ+PQ", "OPQ+PQ fast-scan", "RaBitQ")
_TIMED: Final = 100
_RABITQ_EXTRA: Final = 8  # bytes of factors beside a bit for each dimension
_LEARNED: Final = 16_384  # rows that the codes of FAISS learn from
_COMPONENTS: Final = 256
_CENTROIDS: Final = 256
_OPQ_ROUNDS: Final = 10
_PQ_ROUNDS: Final = 10
_faiss: Any = faiss

# A code with its rows in it: (queries float32 [m, d], k) -> rows' numbers, int64 [m, k], nearest first.
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a code found. Recalls, precision and mAP from 0 to 1; class figures are None without classes.

    recall: of the 10 exact neighbours among its first 10; recall_wide: among its first 100. precision: share of the
    query's class among its first 6. queries_per_second: one query at a time on one core, its coding included.
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
    """A code that FAISS has, with rows in it. learned_s: seconds to learn it, the principal components included."""

    name: str
    search: Search
    learned_s: float


@dataclass(frozen=True, slots=True)
class Collection:
    """What codes are judged on. vectors: float32 [n, d]; classes: int64 [n] or None; queries: rows' numbers, int64."""

    vectors: NDArray[np.float32]
    classes: NDArray[np.int64] | None
    queries: NDArray[np.int64]

    def exact(self) -> NDArray[np.int64]:
        """Return the numbers of each query's 10 nearest, itself left out: int64 [q, 10]."""
        return _without(exhaustive(self.vectors)(self.vectors[self.queries], EXACT + 1), self.queries)[:, :EXACT]


def judge(
    name: str,
    size: int,
    search: Search,
    collection: Collection,
    exact: NDArray[np.int64],
    *,
    rows: NDArray[np.float32] | None = None,
) -> Judged:
    """Judge one code. size: its bytes a row. rows: what it takes as queries, the collection's vectors by default."""
    rows = collection.vectors if rows is None else rows
    queries = rows[collection.queries]
    timed = queries[:_TIMED]
    with _one_thread():
        search(timed[:1], EXACT)
        started = time.perf_counter()
        for query in timed:
            search(query[np.newaxis], EXACT)
        rate = len(timed) / (time.perf_counter() - started)
    order = _without(search(queries, len(rows)), collection.queries)
    precision = average = None
    if collection.classes is not None:
        right = collection.classes[order] == collection.classes[collection.queries][:, np.newaxis]
        precision = float(right[:, :NEAREST].mean())
        hits = np.cumsum(right, axis=1)
        ranks = np.arange(1, order.shape[1] + 1)
        some = hits[:, -1] > 0
        average = float(((hits / ranks * right).sum(axis=1)[some] / hits[some, -1]).mean()) if some.any() else 0.0
    return Judged(
        name, size, _recall(order[:, :EXACT], exact), _recall(order[:, :WIDE], exact), precision, average, rate
    )


def exhaustive(rows: NDArray[np.float32]) -> Search:
    """Return the search by exact Euclidean distance."""
    index = _faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    return lambda queries, k: index.search(queries, k)[1]


def hamming(bits: NDArray[np.bool_], encode: Callable[[NDArray[np.float32]], NDArray[np.bool_]]) -> Search:
    """Return the search among rows' bits, bool [n, bits]; `encode` makes those of queries."""
    index = _faiss.IndexBinaryFlat(bits.shape[1])
    index.add(np.packbits(bits, axis=1, bitorder="little"))
    return lambda queries, k: index.search(np.packbits(encode(queries), axis=1, bitorder="little"), k)[1]


def standard_codes(
    rows: NDArray[np.float32],
    bits: int,
    *,
    learn_from: NDArray[np.int64] | None = None,
    names: Container[str] = STANDARD,
) -> Iterator[StandardCode]:
    """Yield the codes that FAISS has, those in `names`, at this many bits, with `rows` (float32 [n, d]) in them.

    They learn from 16,384 of the rows, or of those with the numbers `learn_from`. Those that need more rows or more
    bits than there are, are left out.
    """
    learn_from = np.arange(len(rows)) if learn_from is None else learn_from
    chosen = np.random.default_rng(0).permutation(learn_from)[:_LEARNED]
    began = time.perf_counter()
    mean = rows[chosen].mean(axis=0)
    # As many components as any of them takes: a bit each for ITQ, and half of that for products.
    axes = principal_axes(rows[chosen] - mean, min(max(_COMPONENTS, bits), len(chosen) - 1))
    projected = time.perf_counter() - began
    components = np.concatenate([(part - mean) @ axes for part in np.array_split(rows, -(-len(rows) // _LEARNED))])

    def over(make: Callable[[NDArray[np.float32]], Any], width: int, name: str) -> StandardCode:
        began = time.perf_counter()
        with _one_thread():  # the parts are small: threads would wait for each other more than they learn
            sample = np.ascontiguousarray(components[chosen, :width])
            index = make(sample)
            index.train(sample)
        learned = projected + time.perf_counter() - began
        index.add(np.ascontiguousarray(components[:, :width]))
        few = np.ascontiguousarray(axes[:, :width])
        return StandardCode(name, lambda queries, k: index.search((queries - mean) @ few, k)[1], learned)

    if "sign-LSH" in names:
        signs = _faiss.IndexLSH(rows.shape[1], bits)
        signs.add(rows - mean)
        yield StandardCode("sign-LSH", lambda queries, k: signs.search(queries - mean, k)[1], 0.0)
    wanted: list[tuple[str, int, Callable[[NDArray[np.float32]], Any]]] = []
    if components.shape[1] >= bits:
        wanted.append(("PCA+ITQ", bits, lambda _: _faiss.index_factory(bits, f"ITQ{bits},LSH")))
    width = max(_COMPONENTS, bits // 2)
    if len(chosen) >= _CENTROIDS and components.shape[1] >= width:
        wanted.append(("OPQ+PQ", width, lambda sample: _products(sample, bits // 8, 8)))
        wanted.append(("OPQ+PQ fast-scan", width, lambda sample: _products(sample, bits // 4, 4)))
    dimensions = min(bits - 8 * _RABITQ_EXTRA, components.shape[1])
    if dimensions > 0:
        # Its bits are of equal worth only once the components are mixed.
        wanted.append(("RaBitQ", dimensions, lambda _: _faiss.index_factory(dimensions, f"RR{dimensions},RaBitQ")))
    for name, few, make in wanted:
        if name in names:
            yield over(make, few, name)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let FAISS use one thread of this process meanwhile."""
    threads = _faiss.omp_get_max_threads()
    _faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        _faiss.omp_set_num_threads(threads)


def _products(sample: NDArray[np.float32], parts: int, bits: int) -> Any:
    """Return a product quantiser of `parts` codes of 4 or 8 bits behind its rotation, which was learned in seconds."""
    width = sample.shape[1]
    # The rotation learns with a quantiser like the index's: one for 256 centroids would not suit 16.
    learner = _faiss.ProductQuantizer(width, parts, bits)
    index = _faiss.IndexPQ(width, parts, 8) if bits == 8 else _faiss.IndexPQFastScan(width, parts, bits)
    for quantiser in (learner, index.pq):
        quantiser.cp.niter = _PQ_ROUNDS
        quantiser.cp.min_points_per_centroid = 1  # it writes a line for each part otherwise
    rotation = _faiss.OPQMatrix(width, parts)
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = _OPQ_ROUNDS, 4, _PQ_ROUNDS
    rotation.pq = learner
    rotation.train(sample)
    rotation.pq = None  # it was only lent, and goes with this call
    return _faiss.IndexPreTransform(rotation, index)


def _recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    shares = [len(np.intersect1d(some, each)) / len(each) for some, each in zip(found, true, strict=True)]
    return float(np.mean(shares))


def _without(order: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row without its query's own number; without its last, where that is not in it."""
    keep = order != own[:, np.newaxis]
    keep[keep.all(axis=1), -1] = False
    left: NDArray[np.int64] = order[keep].reshape(len(order), -1)
    return left
