"""With a device, exact search returns the same ids and distances as without."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.local.vector_files import VectorFiles
from index.search import merging
from index.search import view as view_module
from index.search.gpu import rows as rows_module
from index.search.gpu.device import SearchDevice
from index.search.gpu.rows import error_bound
from index.search.product_code import ProductCode
from index.search.ranking import Hits
from index.search.searcher import Searcher
from index.search.segment import Segment
from index.search.view import restrict
from tests.index.helpers import activations
from tests.index.search.gpu.helpers import assert_equal, cpu_device, float16_index, halves, searchers, wait_for_copies
from tests.support.server import wait_until

Pair = tuple[Searcher, Searcher]


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments and blocks with few rows."""
    for module in (merging, view_module, rows_module):
        monkeypatch.setattr(module, "SEGMENT_ROWS", 256, raising=False)
    monkeypatch.setattr("index.search.gpu.search.SEGMENT_ROWS", 256)
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 600 * 8192)
    monkeypatch.setattr(rows_module, "_FEWEST_ROWS", 16)
    monkeypatch.setattr(rows_module, "_COPIED_ROWS", 100)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with searchers() as both:
        yield both


def logged(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was logged since the last call. Another test may have directed the log to standard error."""
    return "".join(capsys.readouterr())


def apply(pair: Pair, first: int, n: int, removed: list[int] | None = None) -> None:
    """Add `n` vectors with ids from `first` on to both searchers, and remove others."""
    for searcher in pair:
        searcher.apply(np.arange(first, first + n), activations(n, seed=first), removed or [])


def compare(pair: Pair, ks: tuple[int, ...] = (1, 10, 100)) -> None:
    queries = np.concatenate([activations(3, seed=99), pair[1].sample(2)])
    for k in ks:
        assert_equal(pair[0].search(queries, k), pair[1].search(queries, k))


def test_added_vectors_are_found_before_during_and_after_their_copy(pair: Pair) -> None:
    for first, n in ((0, 700), (700, 5), (705, 300)):
        apply(pair, first, n)
        compare(pair)
    # The last 237 rows of 1,005 are in a segment that has room for more.
    wait_for_copies(pair[0], 1005)
    compare(pair, (1, 10, 990, 1005, 3000))
    apply(pair, 2000, 5)
    assert pair[0].search(activations(5, seed=2000)[4:], 1)[0].ids.tolist() == [2004], "it is not on the device yet"
    compare(pair)


def test_removed_vectors_are_not_found_although_they_stay_on_the_device(pair: Pair) -> None:
    apply(pair, 0, 1000)
    wait_for_copies(pair[0], 1000)
    queries = activations(3, seed=99)
    nearest = [int(number) for hits in pair[1].search(queries, 40) for number in hits.ids]
    apply(pair, 1000, 0, nearest)
    assert not set(nearest) & {int(number) for hits in pair[0].search(queries, 40) for number in hits.ids}
    compare(pair)


def test_memory_of_removed_vectors_is_freed_on_the_device(pair: Pair) -> None:
    apply(pair, 0, 1024)
    wait_for_copies(pair[0], 1024)
    apply(pair, 2000, 0, [number for number in range(1024) if number % 16])
    wait_for_copies(pair[0], 64)
    compare(pair)
    use = pair[0].on_device
    assert use is not None
    assert use.bytes == 64 * 8196


def test_a_view_of_an_earlier_state_is_searched_as_it_was(pair: Pair) -> None:
    apply(pair, 0, 1000)
    wait_for_copies(pair[0], 1000)
    views = [searcher.view() for searcher in pair]
    apply(pair, 1000, 300, list(range(600)))
    wait_for_copies(pair[0], 1300 - 512)  # two segments of removed vectors were replaced
    queries = activations(3, seed=99)
    assert_equal(pair[0].search(queries, 20, views[0]), pair[1].search(queries, 20, views[1]))


@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
def test_filters_apply_on_the_device(pair: Pair, share: float) -> None:
    apply(pair, 0, 1500)
    wait_for_copies(pair[0], 1500)
    chosen = np.sort(np.random.default_rng(1).permutation(1500)[: int(1500 * share)])
    queries = activations(3, seed=99)
    found, expected = (searcher.search(queries, 5, restrict(searcher.view(), chosen)) for searcher in pair)
    assert_equal(found, expected)
    assert {int(number) for hits in found for number in hits.ids} <= set(chosen.tolist())


def test_near_identical_vectors_are_ranked_exactly_and_all_ties_are_returned(pair: Pair) -> None:
    base = np.maximum(halves(1)[0], np.float16(1))
    copies = np.tile(base, (600, 1))
    for n in range(100):  # each differs in one more value, by the last bit
        copies[n, : n + 1] = np.nextafter(copies[n, : n + 1], np.float16(np.inf))
    for searcher in pair:
        searcher.apply(np.arange(600), copies)
    wait_for_copies(pair[0], 600)
    for k in (3, 520, 550):
        [found], [expected] = (searcher.search(base[np.newaxis], k) for searcher in pair)
        assert_equal([found], [expected])
    assert pair[0].search(base[np.newaxis], 3)[0].ids.tolist() == list(range(100, 600))


def test_vectors_that_do_not_fit_are_searched_on_the_cpu() -> None:
    with searchers(cpu_device(memory=700 * 8196)) as pair:
        apply(pair, 0, 1000)
        wait_for_copies(pair[0], 356)  # for the next 100, FAISS would copy these 356
        compare(pair)
        apply(pair, 1000, 0, list(range(768)))
        wait_for_copies(pair[0], 232)
        compare(pair)


def test_repaired_rows_are_searched_instead_of_their_copies(pair: Pair) -> None:
    apply(pair, 0, 512)
    wait_for_copies(pair[0], 512)
    for searcher in pair:
        damaged = searcher.segments[0]
        repaired = Segment(damaged.capacity)
        repaired.append(damaged.ids, activations(damaged.capacity, seed=77))
        assert searcher.replace([damaged], repaired)
    compare(pair)
    wait_for_copies(pair[0], 256 + 512)  # the block still contains the damaged rows, and half of it is used
    compare(pair)
    assert pair[0].search(activations(256, seed=77)[8:9], 1)[0].ids.tolist() == [8]


def test_copies_of_merged_segments_are_freed(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "TAIL_ROWS", 32)
    monkeypatch.setattr(merging, "SAVED_ROWS", 16)

    def on_device(least: int, most: int) -> bool:
        use = pair[0].on_device
        return use is not None and least <= use.vectors <= most

    for start in range(0, 1088, 64):
        apply(pair, start, 64, [start])
        wait_until(lambda: on_device(len(pair[0]), 4096))
        VectorFiles(tmp_path, "catalog", "f" * 64).save(pair[0], threading.Event())
        compare(pair, (10,))
    assert len(pair[0].segments) < 1088 // 32 / 2
    wait_until(lambda: on_device(len(pair[0]), len(pair[0]) + 40))
    compare(pair)


def test_values_whose_squares_overflow_float16_are_searched_on_the_cpu(pair: Pair) -> None:
    apply(pair, 0, 500)
    wait_for_copies(pair[0], 500)
    large = activations(300, seed=5)
    large[7, 0] = 300
    for searcher in pair:
        searcher.apply(np.arange(1000, 1300), large)
    compare(pair)
    assert_equal(pair[0].search(large[7:8], 3), pair[1].search(large[7:8], 3))


class _Rounding:
    """Changes each squared distance by up to the largest error that a GPU can make."""

    def __init__(self, dimensions: int) -> None:
        self._index, self._dimensions, self._norm = float16_index(dimensions), dimensions, 0.0
        self._random = np.random.default_rng(0)

    def add(self, rows: NDArray[np.float32]) -> None:
        self._index.add(rows)
        self._norm = max(self._norm, float(np.linalg.norm(rows, axis=1).max()))

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        squared, rows = self._index.search(queries, self._index.ntotal)
        errors = error_bound(self._norm, np.linalg.norm(queries, axis=1), self._dimensions)
        squared = (squared + errors[:, np.newaxis] * self._random.uniform(-1, 1, squared.shape)).astype(np.float32)
        order = np.argsort(squared, axis=1)[:, :k]
        return np.take_along_axis(squared, order, axis=1), np.take_along_axis(rows, order, axis=1)


def test_exact_stays_exact_although_the_device_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.search.gpu.search._EXTRA", 0)  # so that the best candidates alone are often wrong
    with searchers(SearchDevice("cuda:0", _Rounding, 1 << 40)) as pair:
        for searcher in pair:
            searcher.apply(np.arange(1024), halves(1024))
        wait_for_copies(pair[0], 1024)
        queries = halves(5, seed=9)
        for k in (1, 10, 50):
            assert_equal(pair[0].search(queries, k), pair[1].search(queries, k))


def recall(found: list[Hits], expected: list[Hits]) -> float:
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len({*one.ids[:10]} & {*other.ids[:10]}) / 10 for one, other in pairs]))


def test_fast_finds_as_many_with_the_codes_on_the_device(pair: Pair) -> None:
    for searcher in pair:
        searcher.apply(np.arange(1000), halves(1000))
    code = ProductCode.train(pair[1].sample(1000))
    assert code is not None
    for searcher in pair:
        searcher.candidates = 40
        searcher.install("fast", code)
    wait_for_copies(pair[0], 1000, codes=1000)
    for searcher in pair:
        searcher.apply(np.arange(2000, 2300), halves(300, seed=1), list(range(0, 1000, 3)))
    wait_for_copies(pair[0], 1300, codes=1300)
    apply(pair, 3000, 10)  # not copied
    queries = np.concatenate([halves(20, seed=99), activations(10, seed=3000)])
    expected = pair[1].search(queries, 10)
    recalls = [recall(searcher.search(queries, 10, mode="fast"), expected) for searcher in pair]
    assert recalls[0] >= recalls[1] - 0.02
    assert recalls[1] < 1, "the codes are compared, not the vectors"
    chosen = np.array([1, 2, 700, 2001, 3001])
    found = pair[0].search(queries, 10, restrict(pair[0].view(), chosen), "fast")
    assert_equal(found, pair[1].search(queries, 10, restrict(pair[1].view(), chosen)))


def test_codes_that_replace_others_replace_them_on_the_device(pair: Pair) -> None:
    apply(pair, 0, 600)
    for seed in (0, 1):
        code = ProductCode.train(pair[1].sample(300, seed=seed), seed=seed)
        assert code is not None
        for searcher in pair:
            searcher.install("fast", code)
        wait_for_copies(pair[0], 600, codes=600)
        queries = activations(5, seed=99)
        assert_equal(pair[0].search(queries, 5, mode="fast"), pair[1].search(queries, 5, mode="fast"))
    use = pair[0].on_device
    assert use is not None
    assert use.bytes == 600 * (8196 + 260), "the previous codes were freed"


class _Failing:
    """Fails as FAISS does without memory on the device: in searches, or when it gets more than `rows` rows."""

    def __init__(self, dimensions: int, rows: int | None = None) -> None:
        self._index, self._rows = float16_index(dimensions), rows

    def add(self, rows: NDArray[np.float32]) -> None:
        if self._rows is not None and self._index.ntotal + len(rows) > self._rows:
            raise RuntimeError("StandardGpuResources: alloc fail (cudaMalloc error out of memory [2])")
        self._index.add(rows)

    def search(self, *arguments: Any) -> Any:
        if self._rows is None:
            raise RuntimeError("StandardGpuResources: alloc fail (cudaMalloc error out of memory [2])")
        return self._index.search(*arguments)


def test_a_device_with_less_memory_than_the_limit_is_used_as_far_as_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    made: list[_Failing] = []

    def make(dimensions: int) -> _Failing:
        made.append(_Failing(dimensions, rows=400 if made else 512))
        return made[-1]

    with searchers(SearchDevice("cuda:0", make, 1 << 40)) as pair:
        apply(pair, 0, 1024)
        wait_until(lambda: "not all vectors fit" in logged(capsys))
        wait_for_copies(pair[0], 512)
        compare(pair)
        apply(pair, 2000, 300)
        compare(pair)
        use = pair[0].on_device
        assert use is not None
        assert use.vectors == 512


def test_a_failing_device_is_given_up_and_the_search_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    with searchers(SearchDevice("cuda:0", _Failing, 1 << 40)) as pair:
        apply(pair, 0, 400)
        wait_for_copies(pair[0], 400)
        compare(pair)
        assert "the device failed, searching on the CPU" in logged(capsys)
        compare(pair)
        assert "failed" not in logged(capsys), "it is not tried again"


def test_searches_are_correct_during_adds_removals_and_copies(pair: Pair) -> None:
    mine, reference = pair
    done = threading.Event()
    errors: list[BaseException] = []

    def search() -> None:
        try:
            while not done.is_set():
                view = mine.view()
                query = activations(1, seed=99)
                assert_equal(mine.search(query, 10, view), reference.search(query, 10, view))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(40):
        first = step * 60
        mine.apply(np.arange(first, first + 60), activations(60, seed=first), list(range(first - 300, first - 250)))
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    mine.use_device(None)
    assert mine.on_device is None
