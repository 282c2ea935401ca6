"""Small segments are merged into large files, and no search shows a difference."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.local import vector_files
from index.local.vector_files import VectorFiles
from index.search.binary_code import BinaryCode
from index.search.product_code import ProductCode
from index.search.searcher import Mode, Searcher
from index.search.segment_file import write_segment
from model_store.code_store import BinaryEncoder
from tests.index.helpers import activations, exact
from tests.index.local.small_segments import LARGE, SMALL, use_small_segments
from tests.index.local.test_vector_files import wait_until

NOTHING = np.empty((0, 4096), np.float16)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_segments(monkeypatch.setattr)


@pytest.fixture
def searcher() -> Iterator[Searcher]:
    created = Searcher(threads=2)
    yield created
    created.close()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the number of rows of each file that is written during the test."""
    counts: list[int] = []

    def count(path: Path, owner: str, ids: NDArray[np.int64], *others: Any) -> object:
        counts.append(len(ids))
        return write_segment(path, owner, ids, *others)

    monkeypatch.setattr(vector_files, "write_segment", count)
    return counts


def save(searcher: Searcher, folder: Path) -> None:
    VectorFiles(folder, "catalog", "f" * 64).save(searcher, threading.Event())


def fill(searcher: Searcher, rows: NDArray[np.float16], folder: Path | None, step: int = 20) -> None:
    """Add the rows that are missing, with their numbers as ids. folder: where they are saved after each step."""
    for start in range(len(searcher), len(rows), step):
        part = rows[start : start + step]
        searcher.apply(np.arange(start, start + len(part)), part)
        if folder is not None:
            save(searcher, folder)


def check(searcher: Searcher, rows: NDArray[np.float16], left: NDArray[np.int64]) -> None:
    """Compare exact searches with NumPy. left: the numbers of the rows that were not removed."""
    assert searcher.ids().tolist() == left.tolist()
    assert len(searcher) == len(left)
    queries = activations(3, seed=7)
    for query, hits in zip(queries, searcher.search(queries, 30), strict=True):
        distances = exact(rows[left].astype(np.float32), query.astype(np.float32))
        order = np.argsort(distances, kind="stable")[:30]
        assert hits.ids.tolist() == left[order].tolist()
        assert hits.distances == pytest.approx(distances[order], rel=1e-9)


def test_few_rows_are_in_memory_and_few_segments_remain(
    searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path, written: list[int]
) -> None:
    most_in_memory = most_segments = 0
    for start in range(0, len(rows), 20):
        searcher.apply(np.arange(start, start + 20), rows[start : start + 20])
        save(searcher, tmp_path)
        most_in_memory = max(most_in_memory, searcher.bytes_in_memory - 9 * (start + 20))
        most_segments = max(most_segments, len(searcher.segments) - start // LARGE)
        used = {segment.file.path for segment in searcher.segments if segment.file is not None}
        assert set(tmp_path.glob("*.vectors")) == used, "replaced files are deleted"
    assert most_in_memory <= 2 * SMALL * 8201
    assert most_segments <= LARGE // SMALL + 2
    assert sum(written) <= 2.2 * len(rows)
    check(searcher, rows, np.arange(len(rows)))


def test_rows_added_faster_than_they_are_saved_are_written_once(
    searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path, written: list[int]
) -> None:
    fill(searcher, rows, None)
    save(searcher, tmp_path)
    assert sum(written) <= len(rows)
    assert len(written) <= len(rows) // LARGE + LARGE // SMALL
    assert searcher.bytes_in_memory <= 2 * SMALL * 8201 + 9 * len(rows)
    check(searcher, rows, np.arange(len(rows)))


def test_codes_and_results_of_every_mode_are_the_same_after_a_merge(
    searcher: Searcher, rows: NDArray[np.float16], code: ProductCode, tmp_path: Path
) -> None:
    fill(searcher, rows[:600], None)
    searcher.install("fast", code)
    weights = np.random.default_rng(0).standard_normal((4096, 64))
    searcher.install("codes", BinaryCode(_Signs(weights.astype(np.float32))))
    searcher.apply(np.arange(600, 1000), rows[600:1000])
    removed = list(range(0, 1000, 7))
    searcher.apply([], NOTHING, removed)
    searcher.candidates = 40
    queries = activations(10, seed=3)
    modes: tuple[Mode, ...] = ("exact", "fast", "codes")
    before = {mode: searcher.search(queries, 5, mode=mode) for mode in modes}
    segments = len(searcher.segments)
    save(searcher, tmp_path)
    assert len(searcher.segments) < segments / 2
    for mode in modes:
        for found, expected in zip(searcher.search(queries, 5, mode=mode), before[mode], strict=True):
            assert found.ids.tolist() == expected.ids.tolist(), mode
            assert found.distances.tolist() == expected.distances.tolist(), mode
    for segment in searcher.segments:
        block = segment.blocks["fast"]
        assert block.count == segment.count
        assert np.array_equal(code.read(block.memory, np.arange(block.count)), code.encode(segment.rows[: block.count]))


class _Signs(BinaryEncoder):
    """Encodes the signs of random projections."""

    def __init__(self, axes: NDArray[np.float32]) -> None:
        self._axes, self.width = axes, axes.shape[1] // 8

    def encode(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        return np.packbits(rows.astype(np.float32) @ self._axes > 0, axis=1)


def test_changes_during_a_merge_are_not_lost(
    searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = 900
    left = set(range(start))

    def change_and_write(*arguments: Any) -> object:
        nonlocal start
        removed = [number for number in sorted(left) if number % 5 == start % 5][:150]
        searcher.apply(np.arange(start, start + 9), rows[start : start + 9], removed)
        left.update(range(start, start + 9))
        left.difference_update(removed)
        start += 9
        return write_segment(*arguments)

    fill(searcher, rows[:start], None)
    monkeypatch.setattr(vector_files, "write_segment", change_and_write)
    for _ in range(5):
        save(searcher, tmp_path)
        check(searcher, rows, np.array(sorted(left)))
        used = {segment.file.path for segment in searcher.segments if segment.file is not None}
        assert set(tmp_path.glob("*.vectors")) == used
    assert start > 900 + 5 * 9


class _Paused(_Signs):
    """Encodes only as many batches of rows as it is allowed to."""

    allowed: threading.Semaphore | None = None

    def encode(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        if self.allowed is not None:
            assert self.allowed.acquire(timeout=60)
        return super().encode(rows)


def test_rows_that_are_being_added_are_not_lost(searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path) -> None:
    encoder = _Paused(np.ones((4096, 8), np.float32))
    searcher.install("codes", BinaryCode(encoder))
    fill(searcher, rows[: LARGE - 16], None)
    last = searcher.segments[-1]
    assert not last.full
    # Fill the last segment; its new rows are not visible until the codes of the next segment are computed.
    encoder.allowed = threading.Semaphore(1)
    adder = threading.Thread(target=fill, args=(searcher, rows[: LARGE + 100], None, LARGE))
    adder.start()
    wait_until(lambda: last.full)
    saver = threading.Thread(target=save, args=(searcher, tmp_path))
    saver.start()
    time.sleep(0.2)
    encoder.allowed.release(100)
    adder.join()
    saver.join()
    check(searcher, rows, np.arange(LARGE + 100))
    assert last not in searcher.segments, "it was merged"


def test_searches_are_correct_during_merges(
    searcher: Searcher, rows: NDArray[np.float16], code: ProductCode, tmp_path: Path
) -> None:
    searcher.apply(np.arange(300), rows[:300])
    searcher.install("fast", code)
    done = threading.Event()
    errors: list[BaseException] = []
    removed: list[int] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    def search() -> None:
        gone, count = len(removed), len(searcher)
        for mode in ("exact", "fast"):
            for number in (1, 299):  # never removed
                nearest = searcher.search(rows[number : number + 1], 1, mode=mode)[0]
                assert nearest.ids[0] == number
                assert nearest.distances[0] == 0
            everything = searcher.search(rows[:1], 5000, mode=mode)[0].ids.tolist()
            assert len(everything) == len(set(everything)) >= count - 200
            assert not set(everything) & set(removed[:gone])

    threads = [threading.Thread(target=repeat, args=(work,)) for work in (search, lambda: save(searcher, tmp_path))]
    for thread in threads:
        thread.start()
    for start in range(300, 1500, 10):
        some = [number for number in range(start - 300, start - 290) if number % 2 == 0]
        searcher.apply(np.arange(start, start + 10), rows[start : start + 10], some)
        removed.extend(some)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    save(searcher, tmp_path)
    check(searcher, rows, np.setdiff1d(np.arange(1500), removed))


def test_files_of_mostly_removed_vectors_are_written_again(
    searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path
) -> None:
    fill(searcher, rows[:1024], tmp_path)
    before = sum(path.stat().st_size for path in tmp_path.glob("*.vectors"))
    in_memory = searcher.bytes_in_memory
    removed = [number for number in range(1024) if number % 4]
    searcher.apply([], NOTHING, removed)
    assert searcher.bytes_in_memory <= in_memory, "the rows left are not read into memory"
    save(searcher, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.vectors")) < before / 2
    assert len(searcher.segments) <= 3
    check(searcher, rows, np.setdiff1d(np.arange(1024), removed))


def test_a_file_of_mostly_removed_vectors_without_small_neighbors_is_written_again(
    searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path
) -> None:
    fill(searcher, rows[: LARGE + 20], tmp_path)
    assert searcher.segments[0].count == LARGE
    searcher.apply([], NOTHING, list(range(150)))
    save(searcher, tmp_path)
    assert searcher.segments[0].count == LARGE - 150
    check(searcher, rows, np.arange(150, LARGE + 20))


def test_a_large_segment_is_not_written_again_for_a_few_rows(
    searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path, written: list[int]
) -> None:
    fill(searcher, rows[: LARGE + 50], tmp_path)
    assert searcher.segments[0].capacity > LARGE - SMALL
    searcher.apply([], NOTHING, list(range(40)))  # the first segment has room for a small one now
    written.clear()
    save(searcher, tmp_path)
    assert written == []


def test_segments_with_few_rows_left_are_merged(searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path) -> None:
    for start in range(0, 960, SMALL):
        searcher.apply(np.arange(start, start + SMALL), rows[start : start + SMALL])
        save(searcher, tmp_path)
        searcher.apply([], NOTHING, list(range(start, start + SMALL - 2)))
        save(searcher, tmp_path)
    assert len(searcher.segments) <= 3 * LARGE // SMALL, "there were 30 segments with two rows"
    check(searcher, rows, np.array([n for n in range(960) if n % SMALL >= SMALL - 2]))


def test_damage_before_a_merge_is_found_after_it(searcher: Searcher, rows: NDArray[np.float16], tmp_path: Path) -> None:
    fill(searcher, rows[:100], tmp_path)
    small = searcher.segments[0].file
    assert small is not None
    with small.path.open("r+b") as file:
        file.seek(-8192 * 3, 2)
        file.write(bytes(8192))
    assert len(list(VectorFiles(tmp_path, "catalog", "f" * 64).find_damage())) == 1
    fill(searcher, rows[:300], tmp_path)
    assert not small.path.exists()
    [(path, problem)] = VectorFiles(tmp_path, "catalog", "f" * 64).find_damage()
    assert path.exists()
    assert "damaged copy of vector" in problem
