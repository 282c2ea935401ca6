"""A device that uses FAISS's float16 index on the CPU, which `index_cpu_to_gpu` turns into its float16 GPU index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.gpu.device import SearchDevice
from index.search.ranking import Hits
from index.search.searcher import Searcher
from tests.support.server import wait_until

_faiss: Any = faiss
ROOM = 1 << 40


def float16_index(dimensions: int) -> Any:
    return _faiss.IndexScalarQuantizer(dimensions, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_L2)


def cpu_device(memory: int = ROOM) -> SearchDevice:
    return SearchDevice("cpu", float16_index, memory)


@contextmanager
def searchers(device: SearchDevice | None = None) -> Iterator[tuple[Searcher, Searcher]]:
    """Yield two empty searchers: one that uses the device, and one that does not."""
    mine, reference = Searcher(threads=2), Searcher(threads=2)
    try:
        mine.use_device(cpu_device() if device is None else device)
        yield mine, reference
    finally:
        mine.close()
        reference.close()


def wait_for_copies(searcher: Searcher, vectors: int, codes: int = 0) -> None:
    """Wait until that many vectors and codes are on the device."""

    def copied() -> bool:
        use = searcher.on_device
        return use is not None and (use.vectors, use.codes) == (vectors, codes)

    wait_until(copied)


def assert_equal(found: list[Hits], expected: list[Hits]) -> None:
    """Compare ids and distances exactly."""
    for one, other in zip(found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.distances.tolist() == other.distances.tolist()


def halves(n: int, seed: int = 0) -> NDArray[np.float16]:
    """Return random rows like those of fc7: float16 [n, 4096], none negative."""
    values = np.random.default_rng(seed).standard_normal((n, 4096), dtype=np.float32)
    return np.maximum(values, 0).astype(np.float16)
