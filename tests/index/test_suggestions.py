"""Suggestions of what to label, on both backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index import suggestions
from index.errors import FilterError
from index.filters import parse_where
from index.records import NewImage
from index.search.suggestions import choose
from index.suggestions import Reason, suggest
from tests.index.helpers import Opener, image, open_index


def cluster(center: int, count: int, spread: float = 0.05) -> NDArray[np.float32]:
    """Return vectors around a point: float32 [count, 4096]."""
    middle = np.abs(np.random.default_rng(center).standard_normal(4096, np.float32))
    noise = np.random.default_rng(center + 1000).standard_normal((count, 4096), np.float32)
    vectors: NDArray[np.float32] = np.maximum(middle + spread * noise, 0)
    return vectors


def entry(key: str, vector: NDArray[np.float32], **metadata: object) -> NewImage:
    number = sum(map(ord, key))
    return NewImage(key, f"{number:064x}", 10, 5, 5, metadata, None, vector)


def test_each_scene_is_suggested_once_and_the_undecided_image_first(open_index: Opener, tmp_path: Path) -> None:
    cats, dogs, birds = cluster(1, 6), cluster(2, 6), cluster(3, 8)
    between = (cats[0] + dogs[0]) / 2
    images = [entry(f"cat{n}", row, label="cat") for n, row in enumerate(cats[:5])]
    images += [entry(f"dog{n}", row, label="dog") for n, row in enumerate(dogs[:5])]
    images += [entry(f"bird{n}", row, label="", set="b") for n, row in enumerate(birds)]
    images += [entry("between", between), entry("cat9", cats[5], label=None), entry("both", dogs[5], label=["a", "b"])]
    with open_index(tmp_path) as index:
        index.add_many(images)
        found = suggest(index, "label", 2)
        by_key = {each.key: each for each in found.suggestions}
        assert (found.unlabeled, found.labeled, found.compared, found.note) == (10, 10, 10, "")
        assert len([key for key in by_key if key.startswith("bird")]) == 1
        assert by_key["between"].reason is Reason.UNCERTAIN
        assert {label for label, _ in by_key["between"].labels} == {"cat", "dog"}
        assert "cat" in by_key["between"].text
        assert "dog" in by_key["between"].text
        assert found.suggestions[0].score == pytest.approx(1)
        assert [each.score for each in found.suggestions] == sorted((e.score for e in found.suggestions), reverse=True)
        only = suggest(index, "label", 100, where=parse_where(["set:b"]))
        assert {each.key for each in only.suggestions} == {f"bird{n}" for n in range(8)}
        assert suggest(index, "breed", 100).unlabeled == 21
        with pytest.raises(FilterError):
            suggest(index, "a b", 1)


def test_without_labels_the_most_typical_images_come_first(tmp_path: Path) -> None:
    rows = np.concatenate([cluster(1, 10), cluster(2, 4), cluster(3, 1)])
    with open_index(tmp_path) as index:
        assert suggest(index, "label", 5).suggestions == []
        index.add_many([entry(f"i{n:02}", row) for n, row in enumerate(rows)])
        found = suggest(index, "label", 3).suggestions
        assert int(found[0].key[1:]) < 10
        assert {0 if int(each.key[1:]) < 10 else 1 if int(each.key[1:]) < 14 else 2 for each in found} == {0, 1, 2}
        assert {(each.reason, each.margin, each.distance) for each in found} == {(Reason.REPRESENTATIVE, None, None)}
        index.change_metadata("i00", lambda _: {"label": "only"})  # one class: nothing can be undecided
        assert all(each.margin == 1 for each in suggest(index, "label", 3).suggestions)


def test_a_large_index_is_sampled_and_the_time_limit_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(f"i{n:03}", n) for n in range(40)])
        monkeypatch.setattr(suggestions, "_SAMPLE", 16)
        found = suggest(index, "label", 100)
        assert (found.unlabeled, found.compared, len(found.suggestions)) == (40, 16, 16)
        assert "16 of 40 unlabeled" in found.note
        assert suggest(index, "label", 100) == found
        stopped = suggest(index, "label", 100, stopped=lambda: True)
        assert stopped.suggestions == []
        assert "time limit" in stopped.note


def test_equal_and_single_vectors_are_suggested_without_invalid_numbers() -> None:
    same = np.repeat(cluster(1, 1), 5, axis=0).astype(np.float16)
    none = np.empty((0, 4096), np.float16)
    for unlabeled, labeled, labels in ((same, none, []), (same, same[:2], ["a", "b"]), (same[:1], none, [])):
        found = choose(unlabeled, labeled, labels, 10)
        assert len(found) == len(unlabeled)
        assert all(0 <= each.gain <= 1 for each in found)
        assert all(np.isfinite(each.vote.distance) for each in found if each.vote)
