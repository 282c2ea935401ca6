"""The exact search agrees with NumPy across segments, removals and ties."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from index.search import merging
from index.search.searcher import Searcher
from index.search.segment import Segment
from index.search.view import parts_of
from tests.index.helpers import exact


def rows(n: int, seed: int = 0) -> NDArray[np.float16]:
    values = np.random.default_rng(seed).standard_normal((n, 4096), dtype=np.float32)
    return np.maximum(values, 0).astype(np.float16)


def test_results_agree_with_numpy_across_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SEGMENT_ROWS", 512)
    searcher = Searcher(threads=2)
    vectors, queries = rows(2000), rows(4, seed=1)
    searcher.apply(np.arange(10, 1210), vectors[:1200])
    searcher.apply(np.arange(1210, 2010), vectors[1200:])
    removed = np.random.default_rng(2).choice(np.arange(10, 2010), 700, replace=False)
    searcher.apply([], rows(0), removed.tolist())
    remaining = np.setdiff1d(np.arange(10, 2010), removed)
    assert len(searcher) == len(remaining) == 1300
    assert searcher.ids().tolist() == remaining.tolist()
    for hits, query in zip(searcher.search(queries, 25), queries, strict=True):
        distances = exact(vectors[remaining - 10].astype(np.float32), query.astype(np.float32))
        order = np.argsort(distances, kind="stable")[:25]
        assert hits.ids.tolist() == remaining[order].tolist()
        assert hits.distances == pytest.approx(distances[order], rel=1e-9)
    everything = searcher.search(queries[:1], 5000)[0]
    assert sorted(everything.ids.tolist()) == remaining.tolist()
    searcher.close()


def test_the_memory_of_removed_vectors_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SEGMENT_ROWS", 256)
    searcher = Searcher(threads=1)
    vectors = rows(1024)
    searcher.apply(np.arange(1024), vectors)
    before = searcher.bytes_in_memory
    searcher.apply([], rows(0), [n for n in range(1024) if n % 8])
    assert len(searcher) == 128
    assert searcher.bytes_in_memory < before / 4
    searcher.apply([2000], rows(1, seed=9))
    assert searcher.search(vectors[8:9], 1)[0].ids.tolist() == [8]
    assert searcher.search(vectors[17:18], 1)[0].distances[0] > 1
    assert searcher.search(rows(1, seed=9), 1)[0].ids.tolist() == [2000]
    searcher.close()


def test_the_cores_get_about_as_many_rows_each() -> None:
    def divide(sizes: list[int], parts: int) -> list[int]:
        ranges = parts_of([np.ones(size, np.bool_) for size in sizes], parts)
        assert [number for part in ranges for number in part] == list(range(len(sizes)))
        return [sum(sizes[number] for number in part) for part in ranges]

    assert divide([100] * 16, 4) == [400] * 4
    assert divide([50, 50], 2) == [50, 50]
    assert divide([100], 4) == [100]
    sizes = [800] * 12 + [100] * 8
    for parts in (2, 3, 4):
        assert max(divide(sizes, parts)) <= sum(sizes) / parts + 800


def test_near_identical_vectors_are_ranked_correctly_and_all_ties_are_returned() -> None:
    searcher = Searcher(threads=1)
    base = rows(1)[0]
    base[:] = np.maximum(base, np.float16(1))
    copies = np.tile(base, (300, 1))
    for n in range(100):  # each differs in one more value, by the last bit
        copies[n, : n + 1] = np.nextafter(copies[n, : n + 1], np.float16(np.inf))
    searcher.apply(np.arange(300), copies)
    hits = searcher.search(base[np.newaxis], 250)[0]
    assert hits.ids.tolist() == [*range(100, 300), *range(50)]
    assert hits.distances[199] == 0 < hits.distances[200]
    tied = searcher.search(base[np.newaxis], 3)[0]
    assert tied.ids.tolist() == list(range(100, 300)), "the caller sorts ties by key, so it needs all of them"
    searcher.close()


def test_a_segment_returns_only_live_rows() -> None:
    segment = Segment(16)
    vectors = rows(3)
    segment.append(np.array([5, 6, 7]), vectors)
    alive = np.array([False, True, False])
    _, found = segment.search(vectors[:1].astype(np.float32), 1, alive)
    assert found.tolist() == [[1]]


def test_small_matrix_products_use_one_core() -> None:
    program = """
import time
import numpy as np
from index.search.product_code import ProductCode
from index.search.searcher import Searcher

searcher = Searcher(threads=1)
rows = np.random.default_rng(0).random((256, 4096)).astype(np.float16)
code = ProductCode.train(rows)
code.encode(rows[:32])
process, thread = time.process_time(), time.thread_time()
for _ in range(100):
    code.query(rows[:1].astype(np.float32))
    time.sleep(0.005)
process, thread = time.process_time() - process, time.thread_time() - thread
print(process / thread)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert float(process.stdout) < 1.5
