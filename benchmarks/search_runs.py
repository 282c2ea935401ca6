"""What benchmarks/search.py makes and measures: an index of some size in a folder, and one way to search in it.

Promises: fc7's figures come through LocalImageIndex, as the service uses it; each way to search is measured in a
process of its own, so that its memory and its start are its own.
Does not: compare; print.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import rivals
from benchmarks.vectors import Vectors, nearest, rows_of
from index.errors import ModeUnavailableError
from index.local.index import LocalImageIndex
from index.records import IndexOptions, NewImage
from index.search.searcher import Mode
from model_store.code_store import CodesManifest, CodeStore

K = 10
WIDE = 100
FINGERPRINT, MODEL = "b" * 64, "bench:1"
BATCH = 32
CANDIDATES = (40, 60, 100, 200, 400)  # the searcher takes no fewer than 40 for 10 neighbours
SNAPSHOT_UP_TO = 200_000  # the searcher's snapshot is as large as the vectors: beyond, they come from the catalogue
_MOST_S = 20.0  # for one query after the other, and again for batches
_FEWEST = 20
_WRITES = 1024


@dataclass(frozen=True, slots=True)
class Point:
    """One way to search. recall: of the 10 nearest among the first 10; wide: among the first 100 (codes alone).

    p50, p99: milliseconds of one query, one after the other; rate: queries a second, 32 at a time; bytes: of memory for
    each vector; start_s: seconds to open it; resident: MB of the process's own memory that opening took.
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


# (queries float32 [n, 4096], k) -> rows' numbers, int64 [n, k]
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def prepare(vectors: Vectors, size: int, folder: Path, *, bits: int, epochs: int, others: tuple[str, ...]) -> None:
    """Make everything that is measured at one size, in `folder`; what is there already is taken as it is.

    bits, epochs: of the auto-encoder, trained on the real vectors; 0 bits: none. others: libraries to compare with.
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
        _codes(home, folder.parent / f"codes-{bits}", vectors, bits, epochs)
    for name in others:
        path = folder / f"{name}.index"
        if not path.exists():
            new = path.with_suffix(".new")
            rivals.build(name, rows_of(vectors, size), size, new, os.cpu_count() or 1)
            new.rename(path)


def measure(folder: Path, size: int, task: str) -> list[Point]:
    """Measure what `prepare` made: "exact", "fast", "codes" or another library's name."""
    with np.load(folder / "truth.npz") as known:
        queries, truth = known["queries"].astype(np.float32), known["nearest"]
    before, began = _resident(), time.perf_counter()
    if task in rivals.NAMES:
        effort, search = rivals.load(task, folder / f"{task}.index", os.cpu_count() or 1)
        start_s, resident = time.perf_counter() - began, _resident() - before
        points = []
        for candidates in rivals.EFFORTS:
            effort(candidates)
            point = _point(f"{task}, {candidates} candidates", size, search, queries, truth)
            points.append(replace(point, bytes=resident * 1e6 / size, start_s=start_s, resident=resident))
        return points
    mode: Mode = task  # type: ignore[assignment]
    with _open(folder / "home", None if mode == "exact" else 1) as index:
        start_s, resident = time.perf_counter() - began, _resident() - before
        if mode == "codes":
            _until_coded(index)
        if index.mode(mode) != mode:
            raise RuntimeError(f"{folder} has no {mode} search")
        search = _of_index(index, mode)
        common: dict[str, Any] = {"start_s": start_s, "resident": resident}
        each = index.stats().bytes_in_memory / len(index.spaces.active.searcher)
        if mode == "exact":
            return [replace(_point("fc7 exact", size, search, queries, truth), bytes=each, **common)]
        if mode == "codes":
            return [replace(_point("fc7 codes", size, search, queries, truth, wide=True), bytes=each, **common)]
        points = []
        searcher = index.spaces.active.searcher
        usual = searcher.candidates
        for candidates in CANDIDATES:
            searcher.candidates = candidates
            note = " (as served)" if candidates == usual else ""
            point = _point(f"fc7 fast, {candidates} compared exactly{note}", size, search, queries, truth)
            points.append(replace(point, bytes=each, **common))
        return points


def measure_writes(folder: Path, vectors: Vectors) -> dict[str, float]:
    """Return vectors a second that are added, 32 to a commit, and deleted one by one, while `fast` is kept up."""
    with _open(folder / "home", 1) as index:
        rows = vectors.queries[np.arange(_WRITES) % len(vectors.queries)].astype(np.float32)
        keys = [f"written/{number}" for number in range(_WRITES)]
        images = [_image(key, row) for key, row in zip(keys, rows, strict=True)]
        began = time.perf_counter()
        for start in range(0, _WRITES, BATCH):
            index.add_many(images[start : start + BATCH])
        added = time.perf_counter() - began
        began = time.perf_counter()
        for key in keys:
            index.delete(key)
        return {"adds_per_s": _WRITES / added, "deletes_per_s": _WRITES / (time.perf_counter() - began)}


@contextmanager
def _open(home: Path, fast_from: int | None) -> Iterator[LocalImageIndex]:
    """Open a prepared index; nothing is learned and no snapshot is written that was not there."""
    with LocalImageIndex.open(
        home, IndexOptions(FINGERPRINT, MODEL, fast_from=fast_from, cache_after=1 << 40)
    ) as index:
        yield index


def _of_index(index: LocalImageIndex, mode: Mode) -> Search:
    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        answers = index.search(queries, k, mode=mode)
        return np.array([[int(neighbour.key) for neighbour in answer] for answer in answers], np.int64)

    return search


def _until_coded(index: LocalImageIndex) -> None:
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
    """Measure one way to search; sizes and memory are the caller's."""
    for query in queries[:3]:
        search(query[np.newaxis], K)
    times: list[float] = []
    while len(times) < len(queries) and (sum(times) < _MOST_S or len(times) < _FEWEST):
        query = queries[len(times)][np.newaxis]
        began = time.perf_counter()
        search(query, K)
        times.append(time.perf_counter() - began)
    found: list[NDArray[np.int64]] = []
    began = time.perf_counter()
    while (done := BATCH * len(found)) < len(queries) and (not found or time.perf_counter() - began < _MOST_S):
        found.append(search(queries[done : done + BATCH], K))
    elapsed = time.perf_counter() - began
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
    """Return the mean share of `truth`, int64 [n, k], that is in the same row of `found`, int64 [n, any]."""
    return float(np.mean([np.isin(true, some).mean() for true, some in zip(truth, found, strict=True)]))


def _fill(home: Path, vectors: Vectors, size: int) -> None:
    """Put rows into a new index until it has `size`, as keys "0", "1", ..., and wait until `fast` is learned."""
    with LocalImageIndex.open(home, IndexOptions(FINGERPRINT, MODEL, cache_after=1 << 40)) as index:
        start = index.stats().images
        position = 0
        for block in rows_of(vectors, size):
            fresh = block[max(0, start - position) :]
            first = position + len(block) - len(fresh)
            if len(fresh):
                index.add_many([_image(str(first + n), row) for n, row in enumerate(fresh.astype(np.float32))])
            position += len(block)
    after = 1 if size <= SNAPSHOT_UP_TO else 1 << 40
    with LocalImageIndex.open(home, IndexOptions(FINGERPRINT, MODEL, fast_from=1, cache_after=after)) as index:
        while index.mode("fast") != "fast":
            time.sleep(0.2)


def _codes(home: Path, kept: Path, vectors: Vectors, bits: int, epochs: int) -> None:
    """Give an index the auto-encoder, trained once for all sizes."""
    from model_store.training.autoencoder import CodeOptions, export_codes, train_codes  # noqa: PLC0415 - torch

    if not kept.exists():
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
        CodeStore(kept.parent).publish(content, manifest).rename(kept)
    target = CodeStore(home).folder(FINGERPRINT, bits)
    shutil.copytree(kept, target)


def _image(key: str, row: NDArray[np.float32]) -> NewImage:
    return NewImage(key, sha256(key.encode()).hexdigest(), 0, 256, 256, None, None, row)


def _resident() -> float:
    """Return the MB of memory that are this process's own: neither files nor what it shares."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
