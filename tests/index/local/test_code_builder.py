"""Search modes: short codes compared with exact distances, during changes, with filters, restarts and full disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.errors import ModeUnavailableError
from index.filters import parse_where
from index.local.code_builder import saved_mode
from index.local.vector_files import VectorFiles
from index.records import NewImage
from index.search.product_code import ProductCode
from index.search.searcher import Searcher
from index.search.view import restrict
from tests.index.helpers import MODEL, open_index, sha256

RANK = 40


def activations(n: int, seed: int = 0) -> NDArray[np.float16]:
    """Return vectors like those of fc7: none negative, with most of the variance in a few directions."""
    random = np.random.default_rng(seed)
    shape = np.random.default_rng(99).standard_normal((RANK, 4096), dtype=np.float32)
    shape *= (1 / np.sqrt(1 + np.arange(RANK, dtype=np.float32)))[:, None]
    noise = 0.3 * random.standard_normal((n, 4096), dtype=np.float32)
    return np.maximum(random.standard_normal((n, RANK), dtype=np.float32) @ shape + noise, 0).astype(np.float16)


def nearest(rows: NDArray[np.float16], query: NDArray[np.float16], k: int) -> list[int]:
    distances = np.linalg.norm(rows.astype(np.float32) - query.astype(np.float32), axis=1)
    return [int(row) for row in np.argsort(distances, kind="stable")[:k]]


def projection(rows: NDArray[np.float16]) -> ProductCode:
    trained = ProductCode.train(rows)
    assert trained is not None
    return trained


def images(rows: NDArray[np.float16], start: int = 0) -> list[NewImage]:
    return [
        NewImage(f"i{n:05}", sha256(n), 10, 640, 480, {"odd": n % 2}, None, row.astype(np.float32))
        for n, row in enumerate(rows, start)
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made the condition true."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "the condition is still false"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    return activations(3000)


@pytest.fixture(scope="module")
def trained(rows: NDArray[np.float16]) -> ProductCode:
    return projection(rows[:1000])


def test_fast_finds_the_exact_neighbors_at_their_exact_distances(
    rows: NDArray[np.float16], trained: ProductCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.search.searcher._CANDIDATES", 60)
    searcher = Searcher(threads=2)
    searcher.apply(np.arange(2000), rows[:2000])
    searcher.install("fast", trained)
    searcher.apply(np.arange(2000, 3000), rows[2000:])
    queries = activations(20, seed=1)
    exact, fast = searcher.search(queries, 10), searcher.search(queries, 10, mode="fast")
    shared = 0
    for wanted, found in zip(exact, fast, strict=True):
        both = np.intersect1d(wanted.ids, found.ids)
        shared += len(both)
        assert dict(zip(found.ids, found.distances, strict=True)).items() >= {
            (number, distance) for number, distance in zip(wanted.ids, wanted.distances, strict=True) if number in both
        }
    assert shared >= 0.97 * 200
    assert searcher.search(rows[2500:2501], 1, mode="fast")[0].distances.tolist() == [0]
    searcher.close()


def test_deletes_adds_and_filters_work_in_fast_mode(rows: NDArray[np.float16], trained: ProductCode) -> None:
    searcher = Searcher(threads=1)
    searcher.apply(np.arange(1000), rows[:1000])
    searcher.install("fast", trained)
    removed = np.arange(0, 1000, 3)
    searcher.apply([], rows[:0], removed.tolist())
    searcher.apply(np.arange(1000, 1300), rows[1000:1300])
    left = np.setdiff1d(np.arange(1300), removed)
    for query in activations(5, seed=3):
        wanted = left[nearest(rows[left], query, 6)].tolist()
        assert searcher.search(query[None], 6, mode="fast")[0].ids.tolist() == wanted
        even = left[left % 2 == 0]
        view = restrict(searcher.view(), even)
        assert (
            searcher.search(query[None], 6, view, "fast")[0].ids.tolist()
            == even[nearest(rows[even], query, 6)].tolist()
        )
    everything = searcher.search(rows[:1], 5000, mode="fast")[0]
    assert sorted(everything.ids.tolist()) == left.tolist()
    searcher.close()


def test_a_code_installed_during_writes_covers_every_row(
    rows: NDArray[np.float16], trained: ProductCode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("index.search.merging.SEGMENT_ROWS", 256)
    monkeypatch.setattr("index.search.searcher._BATCH", 64)
    monkeypatch.setattr("index.search.merging.SAVED_ROWS", 256)
    monkeypatch.setattr("index.search.searcher._CANDIDATES", 4000)
    searcher = Searcher(threads=1)
    searcher.apply(np.arange(600), rows[:600])

    def write() -> None:
        for start in range(600, 2400, 30):
            searcher.apply(
                np.arange(start, start + 30), rows[start : start + 30], list(range(start - 600, start - 580))
            )

    writer = threading.Thread(target=write)
    writer.start()
    searcher.install("fast", trained)
    VectorFiles(tmp_path, "catalog", "f" * 64).save(searcher, threading.Event())
    writer.join()
    alive = searcher.ids()
    assert len(alive) == 600 + 1800 - 60 * 20
    assert sorted(searcher.search(rows[:1], 3000, mode="fast")[0].ids.tolist()) == alive.tolist()
    searcher.apply([9000], activations(1, seed=5))
    assert searcher.search(activations(1, seed=5), 1, mode="fast")[0].ids.tolist() == [9000]
    searcher.close()


def test_a_large_index_trains_the_fast_code_and_saves_it(rows: NDArray[np.float16], tmp_path: Path) -> None:
    with open_index(tmp_path, fast_from=300) as index:
        index.add_many(images(rows[:299]))
        assert index.mode() == index.mode("fast") == "exact"
        index.add_many(images(rows[299:500], start=299))
        wait_until(lambda: index.mode() == "fast")
        assert index.mode("exact") == "exact"
        assert index.stats().mode == "fast"
        found = index.search(rows[40:41].astype(np.float32), 3)[0]
        assert (found[0].key, found[0].distance) == ("i00040", 0)
        index.delete("i00040")
        assert "i00040" not in [near.key for near in index.search(rows[40:41].astype(np.float32), 3)[0]]
        odd = index.similar("i00041", 400, where=parse_where(["odd:1"]), mode="fast")
        assert len(odd) == 249
    with open_index(tmp_path, fast_from=300) as index:
        assert index.mode() == "fast", "the trained code is loaded at the next start"
        assert index.search(rows[41:42].astype(np.float32), 1)[0][0].key == "i00041"
        assert len(index.search(rows[41:42].astype(np.float32), 1000)[0]) == 499
    with open_index(tmp_path) as index:
        assert index.mode() == "exact", "fast_from is not set"


def test_codes_of_an_earlier_version_are_learned_again(rows: NDArray[np.float16], tmp_path: Path) -> None:
    with open_index(tmp_path, fast_from=1000) as index:
        index.add_many(images(rows[:1024]))
        wait_until(lambda: index.mode() == "fast" and len(list((tmp_path / "index").glob("*.codes"))) == 1)
    [code], [codes] = (list((tmp_path / "index").glob(pattern)) for pattern in ("*.code", "*.codes"))
    code.write_bytes(b"fc7 projection 2\n" + code.read_bytes()[20:])
    codes.write_bytes(codes.read_bytes().replace(b'"code": "', b'"code": "0', 1) + bytes(64))
    assert saved_mode(tmp_path / "index", MODEL["fingerprint"]) == "exact"
    with open_index(tmp_path, fast_from=1000) as index:
        assert index.search(rows[40:41].astype(np.float32), 1)[0][0].key == "i00040"
        wait_until(lambda: index.mode() == "fast")
        assert index.search(rows[40:41].astype(np.float32), 1)[0][0].key == "i00040"
    assert saved_mode(tmp_path / "index", MODEL["fingerprint"]) == "fast"


def test_a_code_file_that_is_damaged_or_of_another_model_is_not_used(trained: ProductCode, tmp_path: Path) -> None:
    path = tmp_path / "fast.code"
    assert ProductCode.load(path, "f") is None
    trained.save(path, "f")
    loaded = ProductCode.load(path, "f")
    assert loaded is not None
    row = activations(3, seed=8)
    assert np.array_equal(loaded.encode(row), trained.encode(row))
    assert ProductCode.load(path, "g") is None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert ProductCode.load(path, "f") is None
    path.write_bytes(data[:1000])
    assert ProductCode.load(path, "f") is None


def test_closing_does_not_wait_for_the_end_of_training(
    rows: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.search.product_code._ITERATIONS", 10_000)
    with open_index(tmp_path, fast_from=100) as index:
        index.add_many(images(rows[:100]))
        assert len(index.search(rows[:1].astype(np.float32), 6)[0]) == 6, "search is exact meanwhile"
    assert list((tmp_path / "index").glob("*.code")) == []


def test_codes_mode_without_codes_is_rejected_and_the_error_names_the_command(tmp_path: Path) -> None:
    with open_index(tmp_path) as index, pytest.raises(ModeUnavailableError, match="fc7 codes train"):
        index.search(np.zeros((1, 4096), np.float32), 1, mode="codes")


def test_fast_search_of_equal_rows_returns_all_of_them() -> None:
    same = np.tile(activations(1), (50, 1))
    searcher = Searcher(threads=1)
    searcher.apply(np.arange(50), same)
    searcher.install("fast", projection(same))
    assert searcher.search(same[:1], 3, mode="fast")[0].ids.tolist() == list(range(50))
    searcher.close()
