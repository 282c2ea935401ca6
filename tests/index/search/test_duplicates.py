"""Near-duplicate search finds the same groups as NumPy, and its cost is bounded."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from index.search import duplicates
from index.search.duplicates import NearGroups, near_groups
from index.search.searcher import Searcher
from tests.index.helpers import vector


def filled(rows: NDArray[np.float16], removed: list[int] | None = None) -> Searcher:
    searcher = Searcher(threads=1)
    searcher.apply(np.arange(1, len(rows) + 1), rows, removed or [])
    searcher.close()
    return searcher


def components(distances: NDArray[np.float64], threshold: float, ids: NDArray[np.int64]) -> list[list[int]]:
    """Return the connected components of two and more vectors, by repeated merging of neighbors."""
    linked = distances <= threshold
    reach = linked.copy()
    while not np.array_equal(wider := reach @ linked, reach):
        reach = wider
    groups = {tuple(ids[row].tolist()) for row in reach}
    return sorted(list(group) for group in groups if len(group) > 1)


def members(found: NearGroups) -> list[list[int]]:
    return sorted(sorted([group.keep, *(number for _, number in group.others)]) for group in found.groups)


@pytest.mark.parametrize("many", [0, 8], ids=["by matrix product", "mixed"])
def test_groups_agree_with_numpy(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    monkeypatch.setattr(duplicates, "_AXES", 16)
    monkeypatch.setattr(duplicates, "_SAMPLE", 100)
    monkeypatch.setattr(duplicates, "_MANY_CANDIDATES", many)
    rng = np.random.default_rng(4)
    rows = np.stack([vector(n) for n in range(250)])
    # Near-duplicates at many distances, some of them close to the threshold, and a chain.
    rows = np.concatenate([rows, rows[:120] + rng.standard_normal((120, 4096)) * np.geomspace(0.01, 1, 120)[:, None]])
    chain = rows[200] + np.arange(1, 9)[:, None] * np.eye(1, 4096, 7) * 4
    halves = np.concatenate([rows, rows[:3], rows[:2], chain]).astype(np.float16)
    view = filled(halves, [7, 300]).view()
    alive = np.setdiff1d(np.arange(len(halves)), [6, 299])
    exact = halves[alive].astype(np.float64)
    squares = np.einsum("ij,ij->i", exact, exact)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * exact @ exact.T, 0))
    distances[distances < 1e-4] = 0
    for threshold in (0.0, 4.5, 20.0):
        found = near_groups(view, threshold, groups=1000, vectors=10**6)
        assert not found.stopped
        assert not found.shortened
        assert members(found) == components(distances, threshold, alive + 1) != []
        assert [group.size for group in found.groups] == sorted((g.size for g in found.groups), reverse=True)
        for group in found.groups:
            assert group.others == sorted(group.others)
            for distance, number in group.others:
                assert distance == pytest.approx(
                    np.linalg.norm(halves[number - 1].astype(np.float64) - halves[group.keep - 1]), abs=1e-9
                )


def test_the_answer_is_shortened_to_the_limits() -> None:
    rows = np.stack([vector(n) for n in range(20)]).astype(np.float16)
    view = filled(np.concatenate([rows, rows[:10], rows[:3]]).astype(np.float16)).view()
    found = near_groups(view, 0, groups=2, vectors=100)
    assert (members(found), found.shortened) == ([[1, 21, 31], [2, 22, 32]], True)
    found = near_groups(view, 0, groups=100, vectors=3)
    assert (members(found), found.shortened) == ([[1, 21, 31], [2, 22]], True)
    assert [group.size for group in found.groups] == [3, 3], "the size counts the images that are not listed"


def test_identical_vectors_cost_no_more_than_others() -> None:
    rows = np.tile(vector(1), (5000, 1)).astype(np.float16)
    started = time.perf_counter()
    found = near_groups(filled(rows).view(), 1, groups=10, vectors=10_000)
    assert [(group.keep, group.size, len(group.others)) for group in found.groups] == [(1, 5000, 4999)]
    assert time.perf_counter() - started < 5, "all 12.5 million pairs would take minutes"


def test_many_vectors_that_are_nearly_the_same_form_one_group_quickly() -> None:
    noise = np.random.default_rng(0).standard_normal((1500, 4096), dtype=np.float32)
    rows = (vector(1) + 0.01 * noise).astype(np.float16)
    started = time.perf_counter()
    found = near_groups(filled(rows).view(), 2, groups=10, vectors=10_000)
    assert [(group.keep, group.size) for group in found.groups] == [(1, 1500)]
    assert time.perf_counter() - started < 10


def test_a_stopped_search_returns_true_groups_and_says_that_it_was_stopped() -> None:
    rows = np.stack([vector(n) for n in range(1100)]).astype(np.float16)
    rows = np.concatenate([rows, rows[:500]])
    calls = 0

    def stopped() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3  # after all vectors were hashed

    found = near_groups(filled(rows).view(), 5, groups=5000, vectors=10**6, stopped=stopped)
    assert found.stopped
    assert len(found.groups) == 500, "equal vectors were found before"
    found = near_groups(filled(rows).view(), 5, groups=5000, vectors=10**6, stopped=lambda: True)
    assert (found.groups, found.stopped) == ([], True)
