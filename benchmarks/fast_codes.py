"""Measure candidate codes for `fast`: each code selects candidates, which are then compared exactly.

    python -m benchmarks.fast_codes VECTORS [--size 100000] [--queries 500] [--json FILE]

VECTORS is a folder as for `benchmarks.search`. Each code has at most 160 bytes per vector and is trained on 8,192
random rows, as `fast` is. It is also trained on rows of only half of the classes, with the rows of the other half added
afterwards: the recall of queries of these classes shows whether a code must be trained again after additions. The
auto-encoder (256 bits) is trained on `--learned` rows.
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

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.search.measure import recall
from benchmarks.search.vectors import read_vectors
from index.search.code_quality import Search, exact_search, hamming_search, standard_codes
from index.search.product_code import BYTES, SAMPLE, ProductCode, principal_axes
from index.search.segment import CodeBlock, rows_nearest

K = 10
CANDIDATES = (40, 100, 200)
BITS = 8 * BYTES
ENCODER_BITS = 256
CURRENT = "PCA-127 and rest, 8 bits (fc7 fast)"
ALTERNATIVES = ("OPQ+PQ fast-scan", "RaBitQ")
ITQ_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Result:
    """The measurements of a code. recalls: of the 10 nearest, with 40, 100 and 200 candidates compared exactly.

    unseen: the same for queries of classes that the code was not trained on. p50: milliseconds of a query with 200
    candidates, including the exact comparison, on one thread. train_s: seconds of training.
    """

    name: str
    bytes: int
    recalls: tuple[float, ...]
    unseen: tuple[float, ...]
    p50: float
    train_s: float


@dataclass(frozen=True, slots=True)
class TrainedCode:
    """A trained code that holds all rows."""

    name: str
    bytes: int
    search: Search
    train_s: float


def codes(rows: NDArray[np.float16], learn_from: NDArray[np.int64], epochs: int) -> Iterator[TrainedCode]:
    """Train each code on a sample of the rows `learn_from`, and yield it with all rows, float16 [n, 4096]."""
    sample = np.sort(np.random.default_rng(0).permutation(learn_from)[:SAMPLE])
    started = time.perf_counter()
    projection = ProductCode.train(rows[sample])
    learned = time.perf_counter() - started
    if projection is None:  # only if training was cancelled
        return
    block = CodeBlock(projection, len(rows))
    block.append(rows)
    alive = np.ones(len(rows), np.bool_)
    yield TrainedCode(CURRENT, BYTES, lambda queries, k: block.search(projection.query(queries), k, alive)[1], learned)
    floats = rows.astype(np.float32)
    for code in standard_codes(floats, BITS, train_on=sample, names=ALTERNATIVES):
        yield TrainedCode(code.name, BYTES, code.search, code.train_s)
    yield _rotated_signs(floats, sample)
    if epochs:
        yield _auto_encoder(rows, learn_from, epochs)


def measure(
    code: TrainedCode, rows: NDArray[np.float16], queries: NDArray[np.float32], truth: NDArray[np.int64]
) -> tuple[tuple[float, ...], float]:
    """Return the recalls, and the median milliseconds of a query. truth: the 10 nearest rows, int64 [m, 10]."""
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
        started = time.perf_counter()
        _nearest(rows, query, code.search(query[np.newaxis], largest)[0])
        times.append(time.perf_counter() - started)
    return recalls, 1000 * float(np.median(times))


def main(arguments: list[str] | None = None) -> None:
    """Measure all codes and print a table."""
    parser = argparse.ArgumentParser(description="Compare codes for the search mode fast.")
    parser.add_argument("vectors", type=Path, help="folder of .npz or .npy vectors with classes")
    parser.add_argument("--size", type=int, default=100_000, help="number of rows to search in")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=10, help="training epochs of the auto-encoder; 0 leaves it out")
    parser.add_argument("--learned", type=int, default=20_000, help="number of rows to train the auto-encoder on")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    vectors = read_vectors(given.vectors, given.queries)
    rows, classes = vectors.rows[: given.size], vectors.classes[: given.size]
    queries = vectors.queries.astype(np.float32)
    truth = exact_search(rows.astype(np.float32))(queries, K)
    random = np.random.default_rng(0)
    training = np.sort(random.permutation(len(rows))[: given.learned])
    known = np.unique(classes)
    old = np.flatnonzero(np.isin(classes, known[: len(known) // 2]))
    old = np.sort(random.permutation(old)[: given.learned])
    # A query counts as one of an unseen class if most of its nearest rows are.
    new = np.flatnonzero(np.isin(classes[truth], known[len(known) // 2 :]).mean(axis=1) > 0.5)
    faiss.omp_set_num_threads(1)
    standard = [
        (code.name, code.bytes, code.train_s, *measure(code, rows, queries, truth))
        for code in codes(rows, training, given.epochs)
    ]
    later = {
        code.name: measure(code, rows, queries[new], truth[new])[0] if len(new) else ()
        for code in codes(rows, old, given.epochs)
    }
    results = [Result(name, size, recalls, later[name], p50, train_s) for name, size, train_s, recalls, p50 in standard]
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
    lines = [head + f"{'train s':>9}"]
    for each in results:
        recalls, unseen = (" ".join(f"{value:.4f}" for value in values) for values in (each.recalls, each.unseen))
        lines.append(
            f"{each.name:<38} {each.bytes:>5}  {recalls:<24} {unseen:<24} {each.p50:>6.2f} {each.train_s:>9.1f}"
        )
    return "\n".join(lines)


def _rotated_signs(rows: NDArray[np.float32], sample: NDArray[np.int64]) -> TrainedCode:
    """Train PCA+ITQ with NumPy; that of FAISS takes minutes for 1,024 bits."""
    started = time.perf_counter()
    mean = rows[sample].mean(axis=0)
    axes = principal_axes(rows[sample] - mean, min(BITS, len(sample) - 1))
    components = (rows[sample] - mean) @ axes
    start = np.random.default_rng(0).standard_normal((axes.shape[1], axes.shape[1]), dtype=np.float32)
    rotation, _ = np.linalg.qr(start)
    for _ in range(ITQ_ROUNDS):
        left, _, right = np.linalg.svd(components.T @ np.sign(components @ rotation))
        rotation = left @ right
    axes = axes @ rotation
    learned = time.perf_counter() - started

    def bits(values: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.concatenate([(part - mean) @ axes > 0 for part in np.array_split(values, -(-len(values) // 4096))])

    return TrainedCode("PCA+ITQ", axes.shape[1] // 8, hamming_search(bits(rows), bits), learned)


def _auto_encoder(rows: NDArray[np.float16], learn_from: NDArray[np.int64], epochs: int) -> TrainedCode:
    from model_store.training.autoencoder import CodeOptions, train_codes  # noqa: PLC0415 - torch

    started = time.perf_counter()
    net = train_codes(rows[learn_from], CodeOptions(ENCODER_BITS, epochs=epochs)).net
    learned = time.perf_counter() - started
    bits: Callable[[NDArray[np.float32]], NDArray[np.bool_]] = net.bits
    coded = np.concatenate([bits(part.astype(np.float32)) for part in np.array_split(rows, -(-len(rows) // 4096))])
    return TrainedCode("auto-encoder, 256 bits", ENCODER_BITS // 8, hamming_search(coded, bits), learned)


def _nearest(rows: NDArray[np.float16], query: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the 10 nearest candidates; -1 is not a candidate."""
    candidates = candidates[candidates >= 0]
    return candidates[rows_nearest(rows[candidates], query)[1][:K]]


if __name__ == "__main__":
    main()
