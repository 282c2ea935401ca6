"""The short code of `fast`: a row's principal components and what is left of its length, a byte each.

Promises: 128 bytes a row; learned in seconds from a sample, and never in need of another one to take adds or deletes: a
row unlike the sample only makes a worse estimate, and exact distances decide. A file is whole or refused.
Does not: rank by itself (the searcher compares the candidates exactly).
Source: principal components by subspace iteration (Halko, Martinsson and Tropp, 2011); FAISS's 8-bit quantiser.

With a row x = components p + rest r, |x - q|^2 is |p_x - p_q|^2 + |r_x|^2 + |r_q|^2 - 2 r_x r_q. The last term is about
nothing, the one before is the same for all rows, and |r_x| is kept as one more coordinate, which is 0 for the query.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.segment import lend

BYTES: Final = 128
SAMPLE: Final = 8192
_FORMAT: Final = b"fc7 projection 1\n"
_COMPONENTS: Final = BYTES - 1
_SPARE: Final = 24  # directions beside those wanted, which make the wanted ones converge
_ROUNDS: Final = 4
_AT_ONCE: Final = 1024
_faiss: Any = faiss


class _StoppedError(Exception):
    """Another thread asked to leave it."""


@dataclass(frozen=True)
class Projection:
    """What was learned. mean: float32 [4096]; axes: float32 [4096, 127]; ranges: float32 [2, 128], low and width."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    ranges: NDArray[np.float32]
    width = BYTES

    @classmethod
    def train(cls, sample: NDArray[np.float16], *, seed: int = 0, stop: threading.Event | None = None) -> Self | None:
        """Learn from rows, float16 [n, 4096], n >= 1; some thousands do. None when `stop` was set meanwhile."""
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
        # A little room, so that rows beyond the sample's extremes are not all cut to the same value.
        room = np.maximum(high - low, 1e-6) * 0.1
        return cls(mean, axes.astype(np.float32), np.stack([low - room, high - low + 2 * room]).astype(np.float32))

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows: float16 [n, 4096] -> uint8 [n, 128]."""
        quantiser = self._quantiser()
        parts = [
            _coordinates(rows[start : start + _AT_ONCE].astype(np.float32) - self.mean, self.axes)
            for start in range(0, len(rows), _AT_ONCE)
        ]
        codes: NDArray[np.uint8] = quantiser.sa_encode(np.concatenate(parts)).reshape(-1, BYTES)
        return codes

    def query(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the coordinates of queries: float32 [n, 4096] -> float32 [n, 128]."""
        coordinates = _coordinates(queries - self.mean, self.axes)
        coordinates[:, -1] = 0
        return coordinates

    def scanner(self, memory: NDArray[np.uint8]) -> Any:
        """Return an empty FAISS index over `memory`, uint8 [capacity, 128]."""
        index = self._quantiser()
        lend(index.codes, memory)
        return index

    def save(self, path: Path, fingerprint: str) -> None:
        """Write this to `path`, for the vectors of one model. Raises OSError, with the old file as it was."""
        buffer = io.BytesIO()
        np.savez(buffer, fingerprint=np.array(fingerprint), mean=self.mean, axes=self.axes, ranges=self.ranges)
        data = buffer.getvalue()
        temporary = path.with_name(path.name + ".new")
        try:
            with temporary.open("wb") as file:
                file.write(_FORMAT + zlib.crc32(data).to_bytes(4, "little") + data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Self | None:
        """Return what was saved for the vectors of this model; None when that is not there, or not as it was saved."""
        try:
            content = path.read_bytes()
            head, data = content[: len(_FORMAT) + 4], content[len(_FORMAT) + 4 :]
            if head != _FORMAT + zlib.crc32(data).to_bytes(4, "little"):
                return None
            with np.load(io.BytesIO(data), allow_pickle=False) as values:
                if str(values["fingerprint"]) != fingerprint:
                    return None
                return cls(values["mean"], values["axes"], values["ranges"])
        except OSError:
            return None

    def _quantiser(self) -> Any:
        index = _faiss.IndexScalarQuantizer(BYTES, _faiss.ScalarQuantizer.QT_8bit, _faiss.METRIC_L2)
        _faiss.copy_array_to_vector(self.ranges.reshape(-1), index.sq.trained)
        index.is_trained = True
        return index


def principal_axes(
    centred: NDArray[np.float32], count: int, *, seed: int = 0, stop: threading.Event | None = None
) -> NDArray[np.float32]:
    """Return the directions of greatest variance of centred rows, float32 [n, d] -> [d, count], greatest first.

    Fewer than `count` when there are fewer rows. Ends with an exception when `stop` is set.
    """
    start = np.random.default_rng(seed).standard_normal((centred.shape[1], count + _SPARE), dtype=np.float32)
    axes, _ = np.linalg.qr(start)
    for _ in range(_ROUNDS):
        if stop is not None and stop.is_set():
            raise _StoppedError
        axes, _ = np.linalg.qr(centred.T @ (centred @ axes))
    # Within the subspace that was found, the directions of greatest variance, in order.
    _, _, turned = np.linalg.svd(centred @ axes, full_matrices=False)
    return np.ascontiguousarray((axes @ turned.T)[:, :count])


def _coordinates(centred: NDArray[np.float32], axes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return components and the length of what they leave: float32 [n, 4096] -> [n, 128]."""
    components = centred @ axes
    whole = np.einsum("ij,ij->i", centred, centred, dtype=np.float64)
    rest = np.sqrt(np.maximum(whole - np.einsum("ij,ij->i", components, components, dtype=np.float64), 0))
    return np.column_stack([components, rest.astype(np.float32)])
