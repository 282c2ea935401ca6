"""Classification by the labels of the nearest images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.records import NewImage
from index.voting import vote
from tests.index.helpers import Opener, picture, sha256, vector

BASE, WAY = vector(0), vector(1)


def at(distance: float) -> NDArray[np.float32]:
    """Return the vector at about this distance from `BASE`."""
    return BASE + np.float32(distance / np.linalg.norm(WAY)) * WAY


def images(labels: dict[str, tuple[object, float]]) -> list[NewImage]:
    return [
        NewImage(key, sha256(n), 3000, 9, 9, {"label": label}, picture(n), at(distance))
        for n, (key, (label, distance)) in enumerate(labels.items())
    ]


def test_near_images_of_small_classes_count_most(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many(images({"a": ("cat", 1), "b": ("dog", 2), "c": ("dog", 2), "d": ("dog", 2), "e": ("dog", 9)}))
        [votes] = vote(index, at(0)[None], 4, "label")
        weights = [1, *[1 / 16 / 2] * 3]
        assert [each.neighbour.key for each in votes.evidence] == ["a", "b", "c", "d"]
        assert [each.weight for each in votes.evidence] == pytest.approx([w / sum(weights) for w in weights], rel=0.02)
        assert votes.classes[0][0] == "cat"
        assert votes.classes[0][1] == pytest.approx(votes.evidence[0].weight)
        assert sum(share for _, share in votes.classes) == pytest.approx(1)


def test_an_identical_image_decides(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many(images({"a": ("cat", 0), "b": ("dog", 0.1), "c": ("dog", 0.1)}))
        [votes] = vote(index, at(0)[None], 10, "label")
        assert votes.classes[0][0] == "cat"
        assert votes.classes[0][1] > 0.99


def test_images_without_a_usable_label_do_not_vote(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        near = {str(n): ((["x", "y"], "", None)[n % 3], 0.1) for n in range(30)}
        index.add_many(images({**near, "far": (["cat"], 5), "farther": ("Cat", 6)}))
        [votes] = vote(index, at(0)[None], 2, "label", known=["CAT"])
        assert [each.neighbour.key for each in votes.evidence] == ["far", "farther"]
        assert dict(votes.classes) == {"CAT": pytest.approx(1)}
        assert vote(index, at(0)[None], 2, "none")[0].classes == []
