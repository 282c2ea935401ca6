"""Prepare an index of some size in a folder, and measure one way to search in it.

Guarantees: fc7 is measured through LocalImageIndex, as the service uses it. Each search is measured in its own process,
so that memory and start-up time are those of this search alone.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search import libraries
from benchmarks.search.libraries import Search
from benchmarks.search.vectors import Vectors, nearest, rows_of
from index.errors import ModeUnavailableError
from index.local.index import LocalImageIndex
from index.records import IndexOptions, NewImage
from index.search.searcher import Mode
from model_store.code_store import CodesManifest, CodeStore

K = 10
WIDE = 100
FINGERPRINT, MODEL = "b" * 64, "bench:1"
BATCH = 32
CANDIDATES = (40, 60, 100, 200, 400)  # the searcher uses at least 40 for 10 neighbors
_MAX_S = 20.0  # for single queries, and again for batches
_MIN_QUERIES = 20
_WRITES = 1024


@dataclass(frozen=True, slots=True)
class Point:
    """The measurements of one search. recall: of the 10 nearest, in the first 10 results; wide: in the first 100.

    p50, p99: milliseconds of single queries; rate: queries per second in batches of 32; bytes: memory per vector;
    start_s: seconds to open the index; resident: MB of private memory that opening it needed.
    """

    name: str
    size: int
    recall: float
    wide: float | None
    p50: float
    p99: float
    rate: float
    bytes: float
    start_s: float
    resident: float
    queries: int


def prepare(vectors: Vectors, size: int, folder: Path, *, bits: int, epochs: int, others: tuple[str, ...]) -> None:
    """Prepare the data for one size in `folder`. Data that is already there is reused.

    bits, epochs: of the auto-encoder, which is trained on the real vectors; 0 bits: none. others: libraries to compare.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth, home = folder / "truth.npz", folder / "home"
    if not truth.exists():
        new = folder / "new.npz"
        np.savez(new, queries=vectors.queries, nearest=nearest(vectors, size, K))
        new.rename(truth)
    if not (home / "ready").exists():
        _fill(home, vectors, size)
        (home / "ready").touch()
    if bits and not CodeStore(home).has(FINGERPRINT):
        _copy_codes(home, folder.parent / f"codes-{bits}", vectors, bits, epochs)
    for name in others:
        path = folder / f"{name}.index"
        if not path.exists():
            new = path.with_suffix(".new")
            libraries.build(name, rows_of(vectors, size), size, new, os.cpu_count() or 1)
            new.rename(path)


def measure(folder: Path, size: int, task: str) -> list[Point]:
    """Measure a search with the prepared data. task: "exact", "fast", "codes" or the name of a library."""
    with np.load(folder / "truth.npz") as known:
        queries, truth = known["queries"].astype(np.float32), known["nearest"]
    memory_before, started = _resident(), time.perf_counter()
    if task in libraries.NAMES:
        set_candidates, search = libraries.load(task, folder / f"{task}.index", os.cpu_count() or 1)
        start_s, resident = time.perf_counter() - started, _resident() - memory_before
        points = []
        for candidates in libraries.SEARCH_CANDIDATES:
            set_candidates(candidates)
            point = _point(f"{task}, {candidates} candidates", size, search, queries, truth)
            points.append(replace(point, bytes=resident * 1e6 / size, start_s=start_s, resident=resident))
        return points
    mode: Mode = task  # type: ignore[assignment]
    with _open(folder / "home", None if mode == "exact" else 1) as index:
        start_s, resident = time.perf_counter() - started, _resident() - memory_before
        if mode == "codes":
            _wait_for_codes(index)
        elif mode == "fast":
            _wait_for_fast(index)
        if index.mode(mode) != mode:
            raise RuntimeError(f"{folder} has no {mode} search")
        search = _of_index(index, mode)
        common: dict[str, Any] = {"start_s": start_s, "resident": resident}
        vector_bytes = index.stats().bytes_in_memory / len(index.spaces.active.searcher)
        if mode == "exact":
            return [replace(_point("fc7 exact", size, search, queries, truth), bytes=vector_bytes, **common)]
        if mode == "codes":
            return [replace(_point("fc7 codes", size, search, queries, truth, wide=True), bytes=vector_bytes, **common)]
        points = []
        searcher = index.spaces.active.searcher
        default = searcher.candidates
        for candidates in CANDIDATES:
            searcher.candidates = candidates
            note = " (as served)" if candidates == default else ""
            point = _point(f"fc7 fast, {candidates} compared exactly{note}", size, search, queries, truth)
            points.append(replace(point, bytes=vector_bytes, **common))
        return points


def measure_writes(folder: Path, vectors: Vectors) -> dict[str, float]:
    """Return vectors per second added (32 per commit) and deleted (one by one), with the `fast` codes maintained."""
    with _open(folder / "home", 1) as index:
        rows = vectors.queries[np.arange(_WRITES) % len(vectors.queries)].astype(np.float32)
        keys = [f"written/{number}" for number in range(_WRITES)]
        images = [_image(key, row) for key, row in zip(keys, rows, strict=True)]
        started = time.perf_counter()
        for start in range(0, _WRITES, BATCH):
            index.add_many(images[start : start + BATCH])
        added = time.perf_counter() - started
        started = time.perf_counter()
        for key in keys:
            index.delete(key)
        return {"adds_per_s": _WRITES / added, "deletes_per_s": _WRITES / (time.perf_counter() - started)}


@contextmanager
def _open(home: Path, fast_from: int | None) -> Iterator[LocalImageIndex]:
    """Open a prepared index without training a code or writing a vector cache."""
    with LocalImageIndex.open(home, IndexOptions(FINGERPRINT, MODEL, fast_from=fast_from)) as index:
        yield index


def _of_index(index: LocalImageIndex, mode: Mode) -> Search:
    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        answers = index.search(queries, k, mode=mode)
        return np.array([[int(neighbour.key) for neighbour in answer] for answer in answers], np.int64)

    return search


def _wait_for_fast(index: LocalImageIndex) -> None:
    while index.mode("fast") != "fast":  # the codes are computed after the index was opened
        time.sleep(0.2)


def _wait_for_codes(index: LocalImageIndex) -> None:
    while True:
        try:
            index.mode("codes")
            return
        except ModeUnavailableError as error:
            if not error.trained:
                raise
            time.sleep(0.2)


def _point(
    name: str, size: int, search: Search, queries: NDArray[np.float32], truth: NDArray[np.int64], *, wide: bool = False
) -> Point:
    """Measure recall and speed of a search; the caller fills in the memory figures."""
    for query in queries[:3]:
        search(query[np.newaxis], K)
    times: list[float] = []
    while len(times) < len(queries) and (sum(times) < _MAX_S or len(times) < _MIN_QUERIES):
        query = queries[len(times)][np.newaxis]
        started = time.perf_counter()
        search(query, K)
        times.append(time.perf_counter() - started)
    found: list[NDArray[np.int64]] = []
    started = time.perf_counter()
    while (done := BATCH * len(found)) < len(queries) and (not found or time.perf_counter() - started < _MAX_S):
        found.append(search(queries[done : done + BATCH], K))
    elapsed = time.perf_counter() - started
    answered = np.concatenate(found)
    known = truth[: len(answered)]
    first = None if not wide else recall(search(queries[: len(known)], WIDE), known)
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return Point(
        name,
        size,
        recall(answered, known),
        first,
        float(p50),
        float(p99),
        len(answered) / elapsed,
        *(0.0, 0.0, 0.0),
        len(answered),
    )


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the mean share of `truth`, int64 [n, k], found in the same row of `found`, int64 [n, m]."""
    return float(np.mean([np.isin(true, some).mean() for true, some in zip(truth, found, strict=True)]))


def _fill(home: Path, vectors: Vectors, size: int) -> None:
    """Add rows to an index until it has `size`, with the keys "0", "1", ..., and train the `fast` code."""
    with LocalImageIndex.open(home, IndexOptions(FINGERPRINT, MODEL)) as index:
        start = index.stats().images
        position = 0
        for block in rows_of(vectors, size):
            fresh = block[max(0, start - position) :]
            first = position + len(block) - len(fresh)
            if len(fresh):
                index.add_many([_image(str(first + n), row) for n, row in enumerate(fresh.astype(np.float32))])
            position += len(block)
    with LocalImageIndex.open(home, IndexOptions(FINGERPRINT, MODEL, fast_from=1)) as index:
        _wait_for_fast(index)


def _copy_codes(home: Path, trained_codes: Path, vectors: Vectors, bits: int, epochs: int) -> None:
    """Copy the auto-encoder, which is trained once for all sizes, into an index."""
    from model_store.training.autoencoder import CodeOptions, export_codes, train_codes  # noqa: PLC0415 - torch

    if not trained_codes.exists():
        options = CodeOptions(bits, epochs=epochs)
        trained = train_codes(vectors.rows, options)
        content = export_codes(trained.net, vectors.rows)
        manifest = CodesManifest(
            bits=bits,
            fingerprint=FINGERPRINT,
            sha256=sha256(content).hexdigest(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            vectors=len(vectors.rows),
            loss=trained.loss,
            training=asdict(options),
        )
        CodeStore(trained_codes.parent).publish(content, manifest).rename(trained_codes)
    target = CodeStore(home).folder(FINGERPRINT, bits)
    shutil.copytree(trained_codes, target)


def _image(key: str, row: NDArray[np.float32]) -> NewImage:
    return NewImage(key, sha256(key.encode()).hexdigest(), 0, 256, 256, None, None, row)


def _resident() -> float:
    """Return the MB of private memory of this process, without files and shared pages."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
