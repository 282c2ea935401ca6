"""The short code of the search mode `fast`: principal components of a row and the length of the rest, a byte each.

Guarantees: 128 bytes for each row. Training takes seconds. A row unlike the sample only gets a worse estimate, and
exact distances decide; `Learned` tells how many such rows there may be. A damaged file is never loaded.
Out of scope: the final ranking; the searcher compares the candidates exactly. When to train again (see
index/local/code_builder.py).
References: subspace iteration for principal components (Halko, Martinsson and Tropp, 2011); FAISS's 8-bit quantizer.

Split a row x into its principal part p and the rest r. Then |x - q|^2 = |p_x - p_q|^2 + |r_x|^2 + |r_q|^2 - 2 r_x r_q.
The last term is close to 0, and |r_q|^2 is the same for all rows. So |r_x| is stored as one more coordinate, which is 0
for the query.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.segment import lend
from model_store.durable import atomic_file

BYTES: Final = 128
SAMPLE: Final = 8192
_FORMAT: Final = b"fc7 projection 2\n"
_COMPONENTS: Final = BYTES - 1
_OVERSAMPLING: Final = 24  # extra directions, which make the needed ones converge
_ITERATIONS: Final = 4
_BATCH: Final = 1024
_faiss: Any = faiss


class _StoppedError(Exception):
    """Another thread requested to stop the training."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a code was trained on. rows: number of vectors; last_id: greatest of their ids; time: seconds since 1970.

    recall: share of the 10 exact neighbors that `fast` found after the training; None if it was not measured.
    """

    rows: int
    last_id: int
    time: float
    recall: float | None = None

    @classmethod
    def of(cls, ids: NDArray[np.int64]) -> Self:
        """Describe a training now on the vectors with these ids, ascending."""
        return cls(len(ids), int(ids[-1]) if len(ids) else 0, time.time())

    def changed(self, ids: NDArray[np.int64]) -> float:
        """Return the number of vectors added and removed since, relative to those that exist: `ids`, ascending."""
        kept = int(np.searchsorted(ids, self.last_id, side="right"))  # ids are never reused
        return (len(ids) - kept + self.rows - kept) / max(1, len(ids))


@dataclass(frozen=True)
class Projection:
    """A trained code. mean: float32 [4096]; axes: float32 [4096, 127]; ranges: float32 [2, 128], minimum and width."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    ranges: NDArray[np.float32]
    learned: Learned = Learned(0, 0, 0.0)
    width = BYTES

    @cached_property
    def name(self) -> str:
        """Identifies the code: equal if and only if all codes are equal."""
        return hashlib.sha256(self.mean.tobytes() + self.axes.tobytes() + self.ranges.tobytes()).hexdigest()[:32]

    @classmethod
    def train(
        cls,
        sample: NDArray[np.float16],
        *,
        learned: Learned | None = None,
        seed: int = 0,
        stop: threading.Event | None = None,
    ) -> Self | None:
        """Train on rows, float16 [n, 4096], n >= 1; some thousand rows suffice. Returns None once `stop` is set.

        learned: describes the vectors that the rows are a sample of.
        """
        rows = sample.astype(np.float32)
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows -= mean
        try:
            axes = principal_axes(rows, _COMPONENTS, seed=seed, stop=stop)
        except _StoppedError:
            return None
        if axes.shape[1] < _COMPONENTS:
            axes = np.pad(axes, ((0, 0), (0, _COMPONENTS - axes.shape[1])))
        coordinates = _coordinates(rows, axes)
        low, high = coordinates.min(axis=0), coordinates.max(axis=0)
        # A margin, so that rows somewhat beyond the sample's extremes are not all clipped to the same value.
        margin = np.maximum(high - low, 1e-6) * 0.1
        ranges = np.stack([low - margin, high - low + 2 * margin]).astype(np.float32)
        return cls(mean, axes.astype(np.float32), ranges, learned or Learned(len(sample), 0, time.time()))

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows, float16 [n, 4096] -> uint8 [n, 128]."""
        quantizer = self._quantizer()
        parts = [
            _coordinates(rows[start : start + _BATCH].astype(np.float32) - self.mean, self.axes)
            for start in range(0, len(rows), _BATCH)
        ]
        codes: NDArray[np.uint8] = quantizer.sa_encode(np.concatenate(parts)).reshape(-1, BYTES)
        return codes

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the coordinates of codes, uint8 [n, 128] -> float32 [n, 128]; compare them with `query`."""
        coordinates: NDArray[np.float32] = self._quantizer().sa_decode(codes)
        return coordinates

    def query(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the coordinates of queries, float32 [n, 4096] -> float32 [n, 128]."""
        coordinates = _coordinates(queries - self.mean, self.axes)
        coordinates[:, -1] = 0
        return coordinates

    def scanner(self, memory: NDArray[np.uint8]) -> Any:
        """Return an empty FAISS index over `memory`, uint8 [capacity, 128]."""
        index = self._quantizer()
        lend(index.codes, memory)
        return index

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the code to `path`, for the vectors of the model with this fingerprint. Raises OSError."""
        buffer = io.BytesIO()
        learned = np.array(json.dumps(asdict(self.learned)))
        np.savez(
            buffer,
            fingerprint=np.array(fingerprint),
            mean=self.mean,
            axes=self.axes,
            ranges=self.ranges,
            learned=learned,
        )
        data = buffer.getvalue()
        with atomic_file(path) as file:
            file.write(_FORMAT + zlib.crc32(data).to_bytes(4, "little") + data)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Self | None:
        """Return the code saved for this model's vectors; None if it is missing, damaged or of another model."""
        try:
            content = path.read_bytes()
            head, data = content[: len(_FORMAT) + 4], content[len(_FORMAT) + 4 :]
            if head != _FORMAT + zlib.crc32(data).to_bytes(4, "little"):
                return None
            with np.load(io.BytesIO(data), allow_pickle=False) as values:
                if str(values["fingerprint"]) != fingerprint:
                    return None
                learned = Learned(**json.loads(str(values["learned"])))
                return cls(values["mean"], values["axes"], values["ranges"], learned)
        except OSError:
            return None

    def _quantizer(self) -> Any:
        index = _faiss.IndexScalarQuantizer(BYTES, _faiss.ScalarQuantizer.QT_8bit, _faiss.METRIC_L2)
        _faiss.copy_array_to_vector(self.ranges.reshape(-1), index.sq.trained)
        index.is_trained = True
        return index


def principal_axes(
    centered: NDArray[np.float32], count: int, *, seed: int = 0, stop: threading.Event | None = None
) -> NDArray[np.float32]:
    """Return the directions of greatest variance of centered rows, float32 [n, d] -> [d, count], greatest first.

    Returns fewer than `count` if there are fewer rows. Raises an exception once `stop` is set.
    """
    start = np.random.default_rng(seed).standard_normal((centered.shape[1], count + _OVERSAMPLING), dtype=np.float32)
    axes, _ = np.linalg.qr(start)
    for _ in range(_ITERATIONS):
        if stop is not None and stop.is_set():
            raise _StoppedError
        axes, _ = np.linalg.qr(centered.T @ (centered @ axes))
    # Sort the directions within the subspace by variance.
    _, _, rotation = np.linalg.svd(centered @ axes, full_matrices=False)
    return np.ascontiguousarray((axes @ rotation.T)[:, :count])


def _coordinates(centered: NDArray[np.float32], axes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the components and the length of the rest, float32 [n, 4096] -> [n, 128]."""
    components = centered @ axes
    total = np.einsum("ij,ij->i", centered, centered, dtype=np.float64)
    rest = np.sqrt(np.maximum(total - np.einsum("ij,ij->i", components, components, dtype=np.float64), 0))
    return np.column_stack([components, rest.astype(np.float32)])
