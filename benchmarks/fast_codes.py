"""Measure which short code suits `fast`: each as the first stage, its candidates compared exactly afterwards.

    python -m benchmarks.fast_codes VECTORS [--size 100000] [--queries 500] [--json FILE]

VECTORS is a folder as benchmarks/search.py takes it. Each code has at most 160 bytes a vector, and learns from 8,192
rows drawn from all, as `fast` does; and once more from rows of half of the classes only, with the other half added
afterwards: what is found for queries of classes that it never saw says whether additions want it learned again. The
auto-encoder (256 bits) is trained on `--learned` rows.
Does not: go through the index (benchmarks/search.py does), remove rows, decide.
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

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.search_runs import recall
from benchmarks.vectors import read_vectors
from index.search.code_quality import Search, exact_search, hamming_search, standard_codes
from index.search.pca_code import BYTES, SAMPLE, Projection, principal_axes
from index.search.segment import CodeBlock, rows_nearest

K = 10
CANDIDATES = (40, 100, 200)
BITS = 8 * BYTES
ENCODER_BITS = 256
PRESENT = "PCA-127 and rest, 8 bits (fc7 fast)"
RIVALS = ("OPQ+PQ fast-scan", "RaBitQ")
ITQ_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Result:
    """One code. recalls: of the 10 nearest, after comparing 40, 100 and 200 candidates exactly.

    unseen: the same for queries of classes that were not learned from. p50: milliseconds of one query with 200
    candidates, exact comparison included, on one thread. learned_s: seconds to learn it.
    """

    name: str
    bytes: int
    recalls: tuple[float, ...]
    unseen: tuple[float, ...]
    p50: float
    learned_s: float


@dataclass(frozen=True, slots=True)
class Made:
    """A code with all rows in it."""

    name: str
    bytes: int
    search: Search
    learned_s: float


def codes(rows: NDArray[np.float16], learn_from: NDArray[np.int64], epochs: int) -> Iterator[Made]:
    """Yield each code, learned from the rows with these numbers, holding all rows, float16 [n, 4096]."""
    few = np.sort(np.random.default_rng(0).permutation(learn_from)[:SAMPLE])
    began = time.perf_counter()
    projection = Projection.train(rows[few])
    learned = time.perf_counter() - began
    if projection is None:  # only when asked to stop
        return
    block = CodeBlock(projection, len(rows))
    block.append(rows)
    alive = np.ones(len(rows), np.bool_)
    yield Made(PRESENT, BYTES, lambda queries, k: block.search(projection.query(queries), k, alive)[1], learned)
    floats = rows.astype(np.float32)
    for code in standard_codes(floats, BITS, train_on=few, names=RIVALS):
        yield Made(code.name, BYTES, code.search, code.train_s)
    yield _rotated_signs(floats, few)
    if epochs:
        yield _auto_encoder(rows, learn_from, epochs)


def measure(
    made: Made, rows: NDArray[np.float16], queries: NDArray[np.float32], truth: NDArray[np.int64]
) -> tuple[tuple[float, ...], float]:
    """Return the recalls and the median milliseconds; `truth`: the 10 nearest, int64 [m, 10]."""
    print(f"{made.name}: learned in {made.learned_s:.1f} s", file=sys.stderr, flush=True)
    most = max(CANDIDATES)
    found = made.search(queries, most)
    recalls = tuple(
        recall(np.stack([_best(rows, query, each[:some]) for query, each in zip(queries, found, strict=True)]), truth)
        for some in CANDIDATES
    )
    times = []
    for query in queries:
        began = time.perf_counter()
        _best(rows, query, made.search(query[np.newaxis], most)[0])
        times.append(time.perf_counter() - began)
    return recalls, 1000 * float(np.median(times))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Which short code suits the mode `fast`.")
    parser.add_argument("vectors", type=Path, help="folder of .npz/.npy vectors with classes")
    parser.add_argument("--size", type=int, default=100_000, help="rows to search in")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=10, help="of the auto-encoder; 0: without it")
    parser.add_argument("--learned", type=int, default=20_000, help="rows that the auto-encoder learns from")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    vectors = read_vectors(given.vectors, given.queries)
    rows, classes = vectors.rows[: given.size], vectors.classes[: given.size]
    queries = vectors.queries.astype(np.float32)
    truth = exact_search(rows.astype(np.float32))(queries, K)
    random = np.random.default_rng(0)
    some = np.sort(random.permutation(len(rows))[: given.learned])
    known = np.unique(classes)
    old = np.flatnonzero(np.isin(classes, known[: len(known) // 2]))
    old = np.sort(random.permutation(old)[: given.learned])
    # A query is of a class that was never seen when most of its nearest are.
    new = np.flatnonzero(np.isin(classes[truth], known[len(known) // 2 :]).mean(axis=1) > 0.5)
    faiss.omp_set_num_threads(1)
    usual = [
        (made.name, made.bytes, made.learned_s, *measure(made, rows, queries, truth))
        for made in codes(rows, some, given.epochs)
    ]
    later = {
        made.name: measure(made, rows, queries[new], truth[new])[0] if len(new) else ()
        for made in codes(rows, old, given.epochs)
    }
    results = [
        Result(name, size, recalls, later[name], p50, learned_s) for name, size, learned_s, recalls, p50 in usual
    ]
    print(
        f"{len(rows):,} vectors, {len(queries)} queries, {len(new)} of them of classes added later; "
        f"{len(os.sched_getaffinity(0))} cores, one used; load {os.getloadavg()[0]:.1f}\n"
    )
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n", encoding="utf-8")


def table(results: list[Result]) -> str:
    """Return the measurements as text, one line each."""
    several = "/".join(map(str, CANDIDATES))
    head = f"{'code':<38} {'bytes':>5}  {'recall@10 of ' + several:<24} {'classes added later':<24} {'p50 ms':>6} "
    lines = [head + f"{'learned s':>9}"]
    for each in results:
        recalls, unseen = (" ".join(f"{value:.4f}" for value in values) for values in (each.recalls, each.unseen))
        lines.append(
            f"{each.name:<38} {each.bytes:>5}  {recalls:<24} {unseen:<24} {each.p50:>6.2f} {each.learned_s:>9.1f}"
        )
    return "\n".join(lines)


def _rotated_signs(rows: NDArray[np.float32], few: NDArray[np.int64]) -> Made:
    """PCA+ITQ, with NumPy: FAISS's takes minutes for 1,024 bits."""
    began = time.perf_counter()
    mean = rows[few].mean(axis=0)
    axes = principal_axes(rows[few] - mean, min(BITS, len(few) - 1))
    components = (rows[few] - mean) @ axes
    start = np.random.default_rng(0).standard_normal((axes.shape[1], axes.shape[1]), dtype=np.float32)
    turn, _ = np.linalg.qr(start)
    for _ in range(ITQ_ROUNDS):
        left, _, right = np.linalg.svd(components.T @ np.sign(components @ turn))
        turn = left @ right
    axes = axes @ turn
    learned = time.perf_counter() - began

    def bits(some: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.concatenate([(part - mean) @ axes > 0 for part in np.array_split(some, -(-len(some) // 4096))])

    return Made("PCA+ITQ", axes.shape[1] // 8, hamming_search(bits(rows), bits), learned)


def _auto_encoder(rows: NDArray[np.float16], learn_from: NDArray[np.int64], epochs: int) -> Made:
    from model_store.training.autoencoder import CodeOptions, train_codes  # noqa: PLC0415 - torch

    began = time.perf_counter()
    net = train_codes(rows[learn_from], CodeOptions(ENCODER_BITS, epochs=epochs)).net
    learned = time.perf_counter() - began
    bits: Callable[[NDArray[np.float32]], NDArray[np.bool_]] = net.bits
    coded = np.concatenate([bits(part.astype(np.float32)) for part in np.array_split(rows, -(-len(rows) // 4096))])
    return Made("auto-encoder, 256 bits", ENCODER_BITS // 8, hamming_search(coded, bits), learned)


def _best(rows: NDArray[np.float16], query: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the 10 nearest among the candidates (-1: none)."""
    candidates = candidates[candidates >= 0]
    return candidates[rows_nearest(rows[candidates], query)[1][:K]]


if __name__ == "__main__":
    main()
