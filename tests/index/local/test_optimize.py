"""An index whose content changes keeps its recall and gives disk space back."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.catalog.backup import take_snapshot
from index.errors import IndexLockedError
from index.filters import parse_where
from index.local.code_builder import CodeBuilder
from index.local.index import LocalImageIndex
from index.local.optimize import optimize
from index.local.verify import verify
from index.records import NewImage
from index.search.product_code import ProductCode
from index.search.searcher import Searcher
from tests.index.helpers import open_index, picture, sha256

_MANY = 1000


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small indexes show the loss of recall that large ones have."""
    monkeypatch.setattr("index.search.searcher._CANDIDATES", 20)
    monkeypatch.setattr("index.search.searcher._CANDIDATES_EACH", 1)


def cluster(n: int, seed: int) -> NDArray[np.float16]:
    """Return vectors around a subspace of their own: the directions of one cluster say nothing about another."""
    axes = np.random.default_rng(1000 + seed).standard_normal((60, 4096), dtype=np.float32)
    rng = np.random.default_rng(seed)
    noise = 0.5 * rng.standard_normal((n, 4096), dtype=np.float32)
    return np.maximum(rng.standard_normal((n, 60), dtype=np.float32) @ axes + noise, 0).astype(np.float16)


def add(index: LocalImageIndex, name: str, rows: NDArray[np.float16]) -> None:
    for start in range(0, len(rows), 250):
        index.add_many(
            [
                NewImage(f"{name}{n}", sha256(n % 9), 1, 1, 1, {"cluster": name}, picture(n % 9) * 2, row)
                for n, row in enumerate(rows[start : start + 250].astype(np.float32), start)
            ]
        )


def delete(index: LocalImageIndex, name: str) -> int:
    where = parse_where([f"cluster:{name}"])
    assert where is not None
    return index.delete_where(where)


def wait_until(true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def exact_nearest(rows: NDArray[np.float16], queries: NDArray[np.float16]) -> list[set[int]]:
    """Return the 10 nearest rows of each query, computed with NumPy."""
    floats, wanted = rows.astype(np.float64), queries.astype(np.float64)
    squared = (floats**2).sum(axis=1) - 2 * wanted @ floats.T
    return [set(order.tolist()) for order in np.argsort(squared, axis=1)[:, :10]]


def recall(found: list[set[int]], exact: list[set[int]]) -> float:
    return float(np.mean([len(a & b) / 10 for a, b in zip(found, exact, strict=True)]))


def recall_of_index(index: LocalImageIndex, queries: NDArray[np.float16], exact: list[set[int]]) -> float:
    answers = index.search(queries.astype(np.float32), 10, mode="fast")
    return recall([{int(near.key[1:]) for near in answer} for answer in answers], exact)


def recall_of_fresh_code(rows: NDArray[np.float16], queries: NDArray[np.float16], exact: list[set[int]]) -> float:
    projection = ProductCode.train(rows)
    assert projection is not None
    searcher = Searcher(threads=1)
    searcher.apply(np.arange(len(rows)), rows)
    searcher.install("fast", projection)
    hits = searcher.search(queries, 10, mode="fast")
    searcher.close()
    return recall([set(hit.ids.tolist()) for hit in hits], exact)


def test_the_recall_comes_back_after_the_content_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cluster(_MANY, 2)
    rng = np.random.default_rng(5)
    queries = (rows[:60].astype(np.float32) + 0.3 * rng.standard_normal((60, 4096))).astype(np.float16)
    exact = exact_nearest(rows, queries)
    with open_index(tmp_path, fast_from=600) as index:
        add(index, "a", cluster(_MANY, 1))
        wait_until(lambda: index.stats().fast is not None)
        with monkeypatch.context() as patched:
            patched.setattr(CodeBuilder, "maintain", lambda *_: None)
            add(index, "b", rows)
            assert delete(index, "a") == _MANY
        outdated = recall_of_index(index, queries, exact)
        fresh = recall_of_fresh_code(rows, queries, exact)
        assert outdated < 0.98 * fresh, "the test would show nothing"
        fast = index.stats().fast
        assert fast is not None
        assert fast.changed >= 1
        add(index, "c", cluster(1, 9))  # any change of the vectors starts what is due
        index.delete("c0")
        wait_until(lambda: (fast := index.stats().fast) is not None and fast.changed < 0.1 and fast.recall is not None)
        assert recall_of_index(index, queries, exact) >= 0.99 * fresh
    with open_index(tmp_path, fast_from=600) as index:
        assert recall_of_index(index, queries, exact) >= 0.99 * fresh, "the new code was saved"
        assert (fast := index.stats().fast) is not None
        assert fast.recall is not None


def test_searches_and_additions_go_on_while_the_code_is_learned_again(tmp_path: Path) -> None:
    rows = cluster(700, 1)
    with open_index(tmp_path, fast_from=600) as index:
        add(index, "a", rows)
        wait_until(lambda: index.mode() == "fast")
        stop, failures = threading.Event(), []

        def search() -> None:
            while not stop.is_set():
                for mode in ("fast", "exact"):
                    near = index.search(rows[7:8].astype(np.float32), 1, mode=mode)[0][0]
                    if (near.key, near.distance) != ("a7", 0):
                        failures.append(near)

        thread = threading.Thread(target=search)
        thread.start()
        for seed in (3, 4):
            add(index, f"c{seed}-", cluster(200, seed))
            index.optimize()
        stop.set()
        thread.join()
        assert failures == []
        assert (fast := index.stats().fast) is not None
        assert fast.changed == 0


def test_optimize_shrinks_a_catalog_of_an_earlier_version_and_learns_the_code(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        add(index, "a", cluster(900, 1))
        add(index, "b", cluster(300, 2))
    catalog = tmp_path / "index/catalog.db"
    with sqlite3.connect(catalog, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    connection.close()
    full = catalog.stat().st_size
    with open_index(tmp_path) as index:
        assert delete(index, "a") == 900
        time.sleep(1)
        with pytest.raises(IndexLockedError):
            optimize(tmp_path, fast_from=200)
    assert catalog.stat().st_size == full
    (tmp_path / "index/fast-0123456789abcdef.code").write_bytes(b"of a model that is gone")
    report = optimize(tmp_path, fast_from=200)
    assert catalog.stat().st_size < 0.4 * full
    assert report.bytes_after < report.bytes_before
    assert report.fast_after is not None
    assert report.fast_after.recall is not None
    assert not (tmp_path / "index/fast-0123456789abcdef.code").exists()
    assert not verify(tmp_path).findings
    with open_index(tmp_path, fast_from=200) as index:
        assert index.mode() == "fast"
        assert delete(index, "b") == 300
        wait_until(lambda: catalog.stat().st_size < 0.25 * full, 20)


def test_disk_space_comes_back_after_a_deletion_and_snapshots_have_no_free_pages(tmp_path: Path) -> None:
    catalog = tmp_path / "home/index/catalog.db"
    with open_index(tmp_path / "home") as index:
        add(index, "a", cluster(900, 1))
        full = index.stats().bytes_on_disk
        assert full > 12_000_000
        delete(index, "a")
        take_snapshot(tmp_path / "home", tmp_path / "early")
        assert (tmp_path / "early/catalog.db").stat().st_size < 1_000_000
        wait_until(lambda: catalog.stat().st_size < 6_000_000, 30)
        add(index, "b", cluster(20, 2))
        assert index.stats().vectors == 20
    assert sum(path.stat().st_size for path in (tmp_path / "home/index").iterdir()) < 8_000_000
    assert not verify(tmp_path / "home").findings


def test_a_bulk_deletion_lets_others_write_and_can_be_stopped(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        add(index, "a", cluster(1000, 1))
        waits: list[float] = []
        done = threading.Event()

        def write() -> None:
            number = 0
            while not done.is_set():
                started = time.perf_counter()
                add(index, "b", cluster(1, number))
                waits.append(time.perf_counter() - started)
                number += 1

        thread = threading.Thread(target=write)
        thread.start()
        calls = 0

        def stopped() -> bool:
            nonlocal calls
            calls += 1
            return calls > 5

        where = parse_where(["cluster:a"])
        assert where is not None
        assert index.delete_where(where, stopped=stopped) == 500
        assert index.delete_where(where) == 500, "a repeated call continues"
        done.set()
        thread.join()
        assert len(waits) > 5, "additions ran in between"
        assert max(waits) < 2
