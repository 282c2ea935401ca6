"""Near-duplicate search finds the same pairs as NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from index.search import duplicates
from index.search.duplicates import near_pairs
from index.search.searcher import Searcher
from tests.index.helpers import vector


def test_near_duplicate_pairs_agree_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    monkeypatch.setattr(duplicates, "_AXES", 16)
    monkeypatch.setattr(duplicates, "_SAMPLE", 100)
    rng = np.random.default_rng(4)
    rows = np.stack([vector(n) for n in range(250)])
    # Near-duplicates at many distances, some of them close to the threshold.
    rows = np.concatenate([rows, rows[:120] + rng.standard_normal((120, 4096)) * np.geomspace(0.01, 1, 120)[:, None]])
    rows = np.concatenate([rows, rows[:3], rows[:2]]).astype(np.float16)
    searcher = Searcher(threads=1)
    searcher.apply(np.arange(1, len(rows) + 1), rows.astype(np.float16), [7, 300])
    exact = rows.astype(np.float16).astype(np.float64)
    alive = np.ones(len(rows), np.bool_)
    alive[[6, 299]] = False
    first, second = np.nonzero(np.triu(alive[:, None] & alive, 1))
    distances = np.array([np.linalg.norm(exact[a] - exact[b]) for a, b in zip(first, second, strict=True)])
    for threshold in (0.0, 5.0, 20.0):
        near = distances <= threshold
        found = near_pairs(searcher.view(), threshold, 10**6)
        expected = set(zip((first[near] + 1).tolist(), (second[near] + 1).tolist(), strict=True))
        assert {pair[1:] for pair in found} == expected
        assert len(found) == len(expected) > 0
        assert found == sorted(found)
        for distance, a, b in found[:50]:
            assert distance == pytest.approx(np.linalg.norm(exact[a - 1] - exact[b - 1]), abs=1e-9)
        for limit in (1, 10):
            nearest = near_pairs(searcher.view(), threshold, limit)
            assert [pair[0] for pair in nearest] == [pair[0] for pair in found[:limit]]
    assert near_pairs(searcher.view(), 5, 10, lambda: True) == []
    searcher.close()
