"""The short code of the search mode `fast`: the rotated principal components of a row, in 4 bits each.

A row is reduced to its principal components. A random rotation gives them about the same variance, so that 16 levels
suit each of them; a level takes 4 bits. FAISS looks up the squared distances of a query to the levels and adds them for
32 rows at a time (fast-scan).

Split a row x into its principal part p and the rest r. Then |x - q|^2 = |p_x - p_q|^2 + |r_x|^2 + |r_q|^2 - 2 r_x r_q.
The last term is close to 0, and |r_q|^2 is the same for all rows. So |r_x| is stored as one more coordinate, which is 0
for the query. It is rotated together with the others.

Guarantees: BYTES bytes for each row. Training takes seconds. A row unlike the sample only gets a worse estimate, and
exact distances decide; `Learned` tells how many such rows there may be. A damaged file is never loaded.
Out of scope: the final ranking; the searcher compares the candidates exactly. When to train again (see
index/local/code_builder.py).
References: subspace iteration for principal components (Halko, Martinsson and Tropp, 2011); product quantization
(Jegou, Douze and Schmid, 2011); Quicker ADC (Andre, Kermarrec and Le Scouarnec, 2019), as implemented in FAISS.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import threading
import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.segment import SEGMENT_ROWS, CodeBlock, to_float32
from model_store.durable import atomic_file

COMPONENTS: Final = 128
BYTES: Final = COMPONENTS // 2
SAMPLE: Final = 8192
_FORMAT: Final = b"fc7 product code 1\n"
_LEVELS: Final = 16
_BLOCK_ROWS: Final = 32  # FAISS scans blocks of 32 rows
# FAISS's order of the rows of a block: byte j has the codes of the rows _ORDER[j] and _ORDER[j] + 16.
_ORDER: Final = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
_POSITION: Final = np.argsort(_ORDER)
_ROUNDS: Final = 10  # of k-means
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


class _Numbers:
    """Gives each block of codes a number that no other existing block has.

    Numbers are used again, because a search allocates some memory for each number up to the greatest one.
    """

    def __init__(self) -> None:
        self._new = itertools.count()
        self._returned: list[int] = []

    def lend(self, owner: Any) -> int:
        """Return a number that is used until `owner` is garbage collected. Thread-safe."""
        try:
            number = self._returned.pop()
        except IndexError:
            number = next(self._new)
        weakref.finalize(owner, self._returned.append, number).atexit = False
        return number


@dataclass(frozen=True)
class ProductCode:
    """A trained code. mean: float32 [4096]; axes: float32 [4096, 128]; rest: float32 [128]; levels: float32 [128, 16].

    axes: the rotated components. rest: the direction in which the length of the rest of a row is added.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    rest: NDArray[np.float32]
    levels: NDArray[np.float32]
    learned: Learned = Learned(0, 0, 0.0)
    _numbers: _Numbers = field(default_factory=_Numbers, repr=False, compare=False)

    @cached_property
    def name(self) -> str:
        """Identifies the code: equal if and only if all codes are equal."""
        return hashlib.sha256(
            self.mean.tobytes() + self.axes.tobytes() + self.rest.tobytes() + self.levels.tobytes()
        ).hexdigest()[:32]

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
            axes = principal_axes(rows, COMPONENTS - 1, seed=seed, stop=stop)
        except _StoppedError:
            return None
        rotation = _rotation(seed)
        axes, rest = axes @ rotation[: axes.shape[1]], rotation[-1]
        coordinates = _with_rest(rows, axes, rest)
        quantizer = _faiss.ProductQuantizer(COMPONENTS, COMPONENTS, 4)
        quantizer.cp.niter, quantizer.cp.seed = _ROUNDS, seed
        quantizer.cp.min_points_per_centroid = 1  # otherwise FAISS prints a warning for each component
        # k-means needs a row for each level.
        quantizer.train(np.resize(coordinates, (max(len(coordinates), _LEVELS), COMPONENTS)))
        levels = _faiss.vector_to_array(quantizer.centroids).reshape(COMPONENTS, _LEVELS)
        return cls(mean, axes, rest, levels, learned or Learned(len(sample), 0, time.time()))

    def encode(self, rows: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the codes of rows, float16 [n, 4096] -> uint8 [n, 128], one number below 16 for each component."""
        packed = self._quantizer.compute_codes(self.coordinates(rows))
        codes: NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(rows), COMPONENTS)
        return codes

    def coordinates(self, rows: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return what `encode` rounds, float16 [n, 4096] -> float32 [n, 128]."""
        parts = [
            _with_rest(to_float32(rows[start : start + _BATCH]) - self.mean, self.axes, self.rest)
            for start in range(0, len(rows), _BATCH)
        ]
        return np.concatenate(parts)

    def query(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the coordinates of queries, float32 [n, 4096] -> float32 [n, 128]."""
        return ((queries - self.mean) @ self.axes).astype(np.float32, copy=False)

    def allocate(self, capacity: int) -> tuple[Any, NDArray[np.uint8]]:
        """Return an empty inverted list of FAISS for `capacity` rows, and its memory, uint8 [blocks, 128, 16]."""
        lists = _faiss.BlockInvertedLists(1, _BLOCK_ROWS, _BLOCK_ROWS * BYTES)
        lists.resize(0, capacity)  # FAISS does not allocate again: the list never gets more rows
        first = self._numbers.lend(lists) * SEGMENT_ROWS
        _faiss.rev_swig_ptr(lists.get_ids(0), capacity)[:] = np.arange(first, first + capacity)
        blocks = -(-capacity // _BLOCK_ROWS)
        memory = _faiss.rev_swig_ptr(lists.get_codes(0), blocks * _BLOCK_ROWS * BYTES)
        return lists, memory.reshape(blocks, COMPONENTS, _BLOCK_ROWS // 2)

    def write(self, memory: NDArray[np.uint8], start: int, codes: NDArray[np.uint8]) -> None:
        """Write codes, uint8 [n, 128], to the memory of a block from row `start` on, where it is 0."""
        blocks, offsets = np.divmod(np.arange(start, start + len(codes)), _BLOCK_ROWS)
        for half in (0, 1):
            chosen = offsets // 16 == half
            memory[blocks[chosen], :, _POSITION[offsets[chosen] % 16]] |= codes[chosen] << np.uint8(4 * half)

    def read(self, memory: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the codes of some rows of a block, uint8 [n, 128]."""
        blocks, offsets = np.divmod(rows, _BLOCK_ROWS)
        shifts = (offsets // 16 * 4).astype(np.uint8)
        codes: NDArray[np.uint8] = memory[blocks, :, _POSITION[offsets % 16]] >> shifts[:, np.newaxis] & np.uint8(15)
        return codes

    def scanner(self, blocks: Sequence[CodeBlock]) -> Scanner:
        """Return a search over some blocks."""
        return Scanner(self, blocks)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the code to `path`, for the vectors of the model with this fingerprint. Raises OSError."""
        buffer = io.BytesIO()
        learned = np.array(json.dumps(asdict(self.learned)))
        np.savez(
            buffer,
            fingerprint=np.array(fingerprint),
            mean=self.mean,
            axes=self.axes,
            rest=self.rest,
            levels=self.levels,
            learned=learned,
        )
        data = buffer.getvalue()
        with atomic_file(path) as file:
            file.write(_FORMAT + zlib.crc32(data).to_bytes(4, "little") + data)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Self | None:
        """Return the code saved for this model's vectors.

        Returns None if it is missing, damaged, of another model or of an earlier version of fc7.
        """
        try:
            content = path.read_bytes()
            head, data = content[: len(_FORMAT) + 4], content[len(_FORMAT) + 4 :]
            if head != _FORMAT + zlib.crc32(data).to_bytes(4, "little"):
                return None
            with np.load(io.BytesIO(data), allow_pickle=False) as values:
                if str(values["fingerprint"]) != fingerprint:
                    return None
                learned = Learned(**json.loads(str(values["learned"])))
                return cls(values["mean"], values["axes"], values["rest"], values["levels"], learned)
        except OSError:
            return None

    @staticmethod
    def is_saved(path: Path) -> bool:
        """Return whether `path` is the file of a code of this version of fc7."""
        try:
            with path.open("rb") as file:
                return file.read(len(_FORMAT)) == _FORMAT
        except OSError:
            return False

    @cached_property
    def _quantizer(self) -> Any:
        quantizer = _faiss.ProductQuantizer(COMPONENTS, COMPONENTS, 4)
        _faiss.copy_array_to_vector(self.levels.reshape(-1), quantizer.centroids)
        return quantizer


class Scanner:
    """Searches in blocks of codes: each is an inverted list of one FAISS index. Any number of threads can search."""

    def __init__(self, code: ProductCode, blocks: Sequence[CodeBlock]) -> None:
        self.blocks = tuple(blocks)
        pointers = _faiss.InvertedListsPtrVector()
        for block in blocks:
            pointers.push_back(block.holder)
        self._lists = _faiss.VStackInvertedLists(pointers.size(), pointers.data())
        self._coarse = _faiss.IndexFlatL2(COMPONENTS)  # FAISS needs one, but `search` itself names the lists
        self._index = _faiss.IndexIVFPQFastScan(
            self._coarse, COMPONENTS, len(self.blocks), COMPONENTS, 4, _faiss.METRIC_L2
        )
        self._index.by_residual, self._index.is_trained = False, True
        _faiss.copy_array_to_vector(code.levels.reshape(-1), self._index.pq.centroids)
        self._index.replace_invlists(self._lists)
        # The ids of a block's rows start at its number times SEGMENT_ROWS.
        self._numbers = np.array(
            [_faiss.rev_swig_ptr(block.holder.get_ids(0), 1)[0] // SEGMENT_ROWS for block in blocks], np.int64
        )
        self._positions = np.zeros(int(self._numbers.max()) + 1, np.int64)
        self._positions[self._numbers] = np.arange(len(blocks))

    def search(
        self, queries: NDArray[np.float32], k: int, part: range, alive: Sequence[NDArray[np.bool_]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Search in the blocks with the numbers in `part`. alive: flags of the rows of all blocks.

        queries: from `ProductCode.query`. k: at most the number of live rows in these blocks. Returns estimated squared
        distances, numbers of blocks, and numbers of rows, each [n, k].
        """
        bits = np.zeros((len(self._positions), SEGMENT_ROWS // 8), np.uint8)
        for number in part:
            flags = np.packbits(alive[number], bitorder="little")
            bits[self._numbers[number], : len(flags)] = flags
        selector = _faiss.IDSelectorBitmap(bits.reshape(-1))
        parameters = _faiss.IVFSearchParameters(nprobe=len(part), sel=selector)
        lists = np.tile(np.asarray(part, np.int64), (len(queries), 1))
        queries, unused = np.ascontiguousarray(queries), np.zeros(lists.shape, np.float32)
        distances, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        pointers = [_faiss.swig_ptr(array) for array in (queries, lists, unused, distances, ids)]
        query, assigned, coarse, found, labels = pointers
        self._index.search_preassigned_c(len(queries), query, k, assigned, coarse, found, labels, False, parameters)
        numbers, rows = np.divmod(ids, SEGMENT_ROWS)
        return distances, self._positions[numbers], rows


def _with_rest(
    centered: NDArray[np.float32], axes: NDArray[np.float32], rest: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the coordinates of rows, float32 [n, 4096] -> [n, 128], with the length of what the axes do not cover."""
    covered = centered @ axes
    total = np.einsum("ij,ij->i", centered, centered, dtype=np.float64)
    lengths = np.sqrt(np.maximum(total - np.einsum("ij,ij->i", covered, covered, dtype=np.float64), 0))
    coordinates: NDArray[np.float32] = covered + lengths.astype(np.float32)[:, np.newaxis] * rest
    return coordinates


def _rotation(seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rotation: NDArray[np.float32] = np.linalg.qr(random.standard_normal((COMPONENTS, COMPONENTS), dtype=np.float32))[0]
    return rotation


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
