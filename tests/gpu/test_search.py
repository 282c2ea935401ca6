"""Search on the GPU finds exactly what the CPU finds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from index.search.gpu.device import SearchDevice, open_device
from index.search.product_code import SAMPLE, ProductCode
from index.search.searcher import Mode, Searcher
from index.search.view import restrict
from tests.index.helpers import activations
from tests.index.search.gpu.helpers import assert_equal, wait_for_copies
from tests.support.server import wait_until

pytestmark = pytest.mark.gpu
VECTORS, QUERIES, BATCH = 50_000, 50, 5_000
Show = Callable[[str], None]
Pair = tuple[Searcher, Searcher]


@pytest.fixture(scope="module")
def device() -> SearchDevice:
    found = open_device("cuda", 4_000_000_000)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float16]:
    return activations(QUERIES, seed=123)


@pytest.fixture(scope="module")
def pair(device: SearchDevice) -> Iterator[Pair]:
    """A searcher on the GPU and one on the CPU, with the same vectors, some of them removed."""
    gpu, cpu = Searcher(threads=4), Searcher(threads=4)
    gpu.use_device(device)
    for first in range(0, VECTORS, BATCH):
        rows = activations(BATCH, seed=first)
        removed = list(range(first, first + BATCH, 50))
        for searcher in (gpu, cpu):
            searcher.apply(np.arange(first, first + BATCH), rows, removed)
    wait_for_copies(gpu, VECTORS)
    yield gpu, cpu
    gpu.close()
    cpu.close()
    assert device.used == 0


def milliseconds(searcher: Searcher, queries: NDArray[np.float16], mode: Mode) -> float:
    """Return the median time of a search with one query."""
    searcher.search(queries[:1], 10, mode=mode)
    times = []
    for query in queries:
        started = time.perf_counter()
        searcher.search(query[np.newaxis], 10, mode=mode)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def test_exact(pair: Pair, queries: NDArray[np.float16], figure: Show) -> None:
    """Search: exact on the GPU equals the CPU's"""
    own = pair[1].sample(20)
    for k in (1, 10, 100, 1000):
        for some in (queries, own):
            assert_equal(pair[0].search(some, k), pair[1].search(some, k))
    gpu, cpu = (milliseconds(searcher, queries, "exact") for searcher in pair)
    figure(f"{VECTORS:,} vectors: {gpu:.2f} ms, CPU {cpu:.1f} ms")


def test_filters(pair: Pair, queries: NDArray[np.float16], figure: Show) -> None:
    """Search: filters on the GPU equal the CPU's"""
    for share in (0.5, 0.05, 0.001):
        chosen = np.flatnonzero(np.random.default_rng(0).random(VECTORS) < share)
        found, expected = (searcher.search(queries, 10, restrict(searcher.view(), chosen)) for searcher in pair)
        assert_equal(found, expected)
    figure("50 %, 5 % and 0.1 % of the vectors")


def test_fast(pair: Pair, queries: NDArray[np.float16], figure: Show) -> None:
    """Search: fast on the GPU finds as many as the CPU's"""
    code = ProductCode.train(pair[1].sample(SAMPLE))
    assert code is not None
    for searcher in pair:
        searcher.install("fast", code)
    wait_for_copies(pair[0], VECTORS, codes=VECTORS)
    exact = [set(hits.ids[:10].tolist()) for hits in pair[1].search(queries, 10)]
    recalls = []
    for searcher in pair:
        found = searcher.search(queries, 10, mode="fast")
        hits_found = [len(best & set(hits.ids[:10].tolist())) for best, hits in zip(exact, found, strict=True)]
        recalls.append(float(np.mean(hits_found)) / 10)
    assert recalls[0] >= recalls[1] - 0.01
    gpu, cpu = (milliseconds(searcher, queries, "fast") for searcher in pair)
    figure(f"recall {recalls[0]:.3f}, CPU {recalls[1]:.3f}; {gpu:.2f} ms, CPU {cpu:.2f} ms")


def test_changes_during_searches(device: SearchDevice, queries: NDArray[np.float16], figure: Show) -> None:
    """Search: answers are right while vectors change, 8 threads"""
    gpu, cpu = Searcher(threads=4), Searcher(threads=4)
    gpu.use_device(device)
    done, errors, searches = threading.Event(), [], []

    def search() -> None:
        try:
            while not done.is_set():
                view = gpu.view()
                assert_equal(gpu.search(queries[:4], 10, view), cpu.search(queries[:4], 10, view))
                searches.append(1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    for step in range(30):
        first = 1000 * step
        gpu.apply(np.arange(first, first + 1000), activations(1000, seed=step), list(range(first - 4000, first - 3000)))
    done.set()
    for thread in threads:
        thread.join()
    gpu.close()
    cpu.close()
    assert errors == []
    figure(f"{len(searches)} searches, 30,000 vectors added, 26,000 removed")


def test_memory_limit(queries: NDArray[np.float16], figure: Show) -> None:
    """Search: FC7_CUDA_INDEX_MB limits the memory, the CPU searches the rest"""
    device = open_device("cuda", 512_000_000)
    assert device is not None
    gpu, cpu = Searcher(threads=4), Searcher(threads=4)
    gpu.use_device(device)
    for first in range(0, VECTORS, BATCH):
        rows = activations(BATCH, seed=first)
        for searcher in (gpu, cpu):
            searcher.apply(np.arange(first, first + BATCH), rows)
    wait_until(lambda: device.used > 150_000_000)
    assert_equal(gpu.search(queries, 10), cpu.search(queries, 10))
    assert device.used <= 512_000_000
    figure(f"{len(gpu)} vectors, {device.used / 1e6:.0f} MB on the device")
    gpu.close()
    cpu.close()
