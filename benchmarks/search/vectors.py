"""The vectors of the search benchmark: read from a folder, or embedded from photographs; extended by simulated ones.

Guarantees: queries are never among the rows; the same arguments give the same rows in the same order on any machine;
simulated rows come after all real ones.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.photographs import read_photographs
from model_store.image import encode_jpeg, prepare, views
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

DIMENSIONS = 4096
BLOCK = 1024
_MIN_WEIGHT, _MAX_WEIGHT = 0.5, 0.95  # weight of the first of two vectors in a mixture


@dataclass(frozen=True, slots=True)
class Vectors:
    """Real vectors. rows: float16 [n, 4096]; queries: float16 [m, 4096]; classes: int64 [n], -1 where unknown."""

    rows: NDArray[np.float16]
    queries: NDArray[np.float16]
    classes: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """A hash of a sample of the vectors, to recognize prepared data."""
        state = hashlib.sha256(repr((self.rows.shape, self.queries.shape)).encode())
        state.update(self.rows[:: max(1, len(self.rows) // 64)].tobytes())
        state.update(self.queries[:: max(1, len(self.queries) // 64)].tobytes())
        return state.hexdigest()[:16]


def read_vectors(folder: Path, queries: int) -> Vectors:
    """Return the vectors in the .npz and .npy files of a folder, ordered by file name, and up to `queries` queries.

    A .npy file is an array [n, 4096]. A .npz file has this array as `v` and, optionally, class numbers [n] as `y`.
    Files whose names start with "query" contain the queries; without such files, the last `queries` rows are used.
    Raises SystemExit.
    """
    parts: dict[bool, list[tuple[NDArray[np.float16], NDArray[np.int64]]]] = {True: [], False: []}
    for path in sorted([*folder.glob("*.npz"), *folder.glob("*.npy")]):
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            values = loaded if isinstance(loaded, np.ndarray) else loaded["v"]
            if values.ndim != 2 or values.shape[1] != DIMENSIONS:
                raise SystemExit(f"{path} has an array of the shape {values.shape}. Expected [n, {DIMENSIONS}].")
            known = not isinstance(loaded, np.ndarray) and "y" in loaded
            classes = loaded["y"].astype(np.int64) if known else np.full(len(values), -1)
        parts[path.name.startswith("query")].append((values.astype(np.float16), classes))
    if not parts[False]:
        raise SystemExit(f"{folder} has no .npz or .npy files with vectors.")
    rows = np.concatenate([values for values, _ in parts[False]])
    classes = np.concatenate([classes for _, classes in parts[False]])
    if parts[True]:
        candidates = np.concatenate([values for values, _ in parts[True]])
        # Evenly spaced: in files that are sorted by class, the first ones would all be of one class.
        return Vectors(
            rows,
            candidates[np.linspace(0, len(candidates) - 1, min(queries, len(candidates))).astype(np.int64)],
            classes,
        )
    if len(rows) <= queries:
        raise SystemExit(f"{folder} has only {len(rows)} vectors: {queries} queries cannot be held out.")
    return Vectors(rows[:-queries], rows[-queries:], classes[:-queries])


def embed_photographs(source: Path, home: Path, count: int, queries: int) -> Vectors:
    """Return `count` vectors of photographs and of random crops of them, with queries from other crops.

    home: its active version embeds them. Raises SystemExit if there are no photographs.
    """
    photographs = read_photographs(source, count)
    with closing(Runner(ModelStore(home).active_artifact())) as runner:
        made: list[NDArray[np.float16]] = []
        random = np.random.default_rng(0)
        for start in range(0, count + queries, 32):
            numbers = range(start, min(start + 32, count + queries))
            pixels = [_crop(photographs[n % len(photographs)], random, whole=n < len(photographs)) for n in numbers]
            made.append(runner.run(views(np.stack(pixels))).fc7.astype(np.float16))
    rows = np.concatenate(made)
    return Vectors(rows[:count], rows[count:], np.full(count, -1))


def _crop(data: bytes, random: np.random.Generator, *, whole: bool) -> NDArray[np.uint8]:
    """Return the prepared photograph, or a crop with 35 to 95 % of its shorter side: uint8 [256, 256, 3]."""
    if whole:
        return prepare(data)
    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    side = max(1, int(min(picture.size) * random.uniform(0.35, 0.95)))
    left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
    part = np.asarray(picture.crop((left, top, left + side, top + side)))
    return prepare(encode_jpeg(part, quality=95))


def rows_of(vectors: Vectors, size: int) -> Iterator[NDArray[np.float16]]:
    """Yield `size` rows in blocks of up to 1,024: first the real ones, then simulated ones.

    A simulated row is a mixture of two real rows of the same class (of any two if classes are unknown). The first has a
    weight of 0.5 to 0.95. So simulated rows lie among the real ones, with a similar density but fewer zeros.
    """
    real = min(size, len(vectors.rows))
    for start in range(0, real, BLOCK):
        yield vectors.rows[start : min(start + BLOCK, real)]
    random = np.random.default_rng(1)
    order = np.argsort(vectors.classes, kind="stable")
    starts = np.searchsorted(vectors.classes[order], vectors.classes, side="left")
    ends = np.searchsorted(vectors.classes[order], vectors.classes, side="right")
    for start in range(real, size, BLOCK):
        some = min(BLOCK, size - start)
        first = random.integers(0, len(vectors.rows), some)
        second = order[random.integers(starts[first], ends[first])]
        share = random.uniform(_MIN_WEIGHT, _MAX_WEIGHT, (some, 1)).astype(np.float32)
        mixed = share * vectors.rows[first].astype(np.float32) + (1 - share) * vectors.rows[second].astype(np.float32)
        yield mixed.astype(np.float16)


def nearest(vectors: Vectors, size: int, k: int) -> NDArray[np.int64]:
    """Return the numbers of the `k` rows nearest to each query, nearest first, int64 [m, k], computed with NumPy.

    Distances are estimated in float32; the best 4k of each block are computed again in float64.
    """
    queries = vectors.queries.astype(np.float32)
    best = np.empty((len(queries), 0))
    numbers = np.empty((len(queries), 0), np.int64)
    start = 0
    for block in rows_of(vectors, size):
        rows = block.astype(np.float32)
        estimated = np.einsum("ij,ij->i", rows, rows) - 2 * queries @ rows.T
        few = min(4 * k, len(rows))
        chosen = np.argpartition(estimated, few - 1, axis=1)[:, :few]
        wide = rows.astype(np.float64)
        exact = np.stack([((wide[some] - query) ** 2).sum(axis=1) for some, query in zip(chosen, queries, strict=True)])
        best, numbers = np.hstack([best, exact]), np.hstack([numbers, chosen + start])
        order = np.argsort(best, axis=1, kind="stable")[:, :k]
        best, numbers = np.take_along_axis(best, order, axis=1), np.take_along_axis(numbers, order, axis=1)
        start += len(rows)
    return numbers
