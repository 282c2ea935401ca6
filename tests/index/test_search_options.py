"""The options of searches, and which of several near-duplicates is kept, with both kinds of index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.duplicates import Duplicates
from index.errors import IndexModelError, InvalidKeyError, KeyNotFoundError
from index.filters import parse_where
from index.records import NewImage
from tests.index.helpers import Opener, exact, image, vector


@pytest.mark.milvus
def test_max_distance_leaves_out_what_is_farther_away(open_index: Opener, tmp_path: Path) -> None:
    vectors = np.stack([vector(n) for n in range(20)])
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n:02}", n, {"even": n % 2 == 0}) for n in range(20)])
        distances = np.sort(exact(vectors, vectors[3]))
        for limit in (0.0, float(distances[4]), float(np.nextafter(distances[4], 0)), 1e9):
            [found] = index.search(vectors[3:4], 15, max_distance=limit)
            expected = int((distances <= limit).sum())
            assert len(found) == min(15, expected)
            assert [near.distance for near in found] == pytest.approx(distances[: len(found)])
        [nothing] = index.search(vector(99)[np.newaxis], 5, max_distance=0.5)
        assert (nothing, nothing.mode) == ([], "exact")
        assert index.similar("03", 5, max_distance=float(distances[1])) == index.similar("03", 1)
        assert index.similar("03", 5, max_distance=0) == []
        [filtered] = index.search(vectors[3:4], 20, max_distance=float(distances[10]), where=parse_where(["even:true"]))
        assert 0 < len(filtered) <= 10


@pytest.mark.milvus
def test_several_keys_are_excluded_and_stored_vectors_are_returned(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(6)])
        [found] = index.search(vector(2)[np.newaxis], 3, exclude=["2", "4"])
        assert len(found) == 3
        assert not {near.key for near in found} & {"2", "4"}
        stored = index.vectors(["1", "5", "1"])
        assert list(stored) == ["1", "5"]
        np.testing.assert_array_equal(stored["5"], vector(5).astype(np.float16))
        np.testing.assert_array_equal(index.vectors(["5"], fingerprint="f" * 64)["5"], stored["5"])
        with pytest.raises(IndexModelError):
            index.vectors(["5"], fingerprint="e" * 64)
        index.delete("5")
        for call in (lambda: index.vectors(["1", "5"]), lambda: index.search(vector(2)[np.newaxis], 3, exclude=["5"])):
            with pytest.raises(KeyNotFoundError):
                call()
        with pytest.raises(InvalidKeyError):
            index.vectors([""])


def sized(key: str, number: int, width: int, size: int, shift: float = 0.0) -> NewImage:
    """Return an image of this width and file size, `shift` x 64 away from `image(key, number)`."""
    made = image(key, number)
    return replace(
        made, width=width, height=width, size=size, sha256=f"{key:0>64}", vector=made.vector + np.float32(shift)
    )


def kept(found: Duplicates) -> list[tuple[str, list[str]]]:
    return [(group.keep.key, [other.key for other in group.others]) for group in found.groups]


@pytest.mark.milvus
def test_the_best_image_of_a_group_is_kept(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        for each in (
            sized("small", 1, 100, 9000),
            sized("large", 1, 200, 10),
            sized("heavy", 2, 100, 500),
            sized("light", 2, 100, 400),
            sized("young", 3, 100, 100),
            sized("other", 9, 100, 100),
        ):
            index.add_many([each])
        index.add_many([sized("a younger one", 3, 100, 100)])
        found = index.duplicates(0.1, 10)
        assert sorted(kept(found)) == [
            ("heavy", ["light"]),
            ("large", ["small"]),
            ("young", ["a younger one"]),
        ]
        assert [found.groups[0].keep.distance, found.groups[0].others[0].distance] == [0, 0]
        assert kept(index.duplicates(0.1, 10, images=1))[0][0] in {"heavy", "large", "young"}
        assert index.delete_duplicates(0.1, stopped=lambda: True) == 0
        assert index.delete_duplicates(0.1) == 3
        assert sorted(record.key for record in index.list().images) == ["heavy", "large", "other", "young"]
        assert index.delete_duplicates(0.1) == 0


@pytest.mark.milvus
def test_only_images_near_the_kept_one_are_deleted(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        # A chain: each image is 64 * 0.05 = 3.2 from the next one.
        index.add_many([sized(str(n), 1, 100 - n, 100, 0.05 * n) for n in range(4)])
        assert kept(index.duplicates(3.5, 10)) == [("0", ["1", "2", "3"])]
        assert index.delete_duplicates(3.5) == 1, "2 and 3 are too far from 0"
        assert [record.key for record in index.list().images] == ["0", "2", "3"]
        assert index.delete_duplicates(3.5) == 1
        assert [record.key for record in index.list().images] == ["0", "2"]


@pytest.mark.milvus
def test_an_image_that_changed_meanwhile_is_not_deleted(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([sized("best", 1, 200, 100), sized("worse", 1, 100, 100), sized("worst", 1, 50, 100)])
        [group] = index.duplicates(0.1, 10).groups
        index.add_many([sized("worse", 1, 100, 100), image("worst", 8)])  # the same bytes, and other bytes
        pairs = [(other, group.keep) for other in group.others]
        assert index._delete_if_unchanged(pairs) == 1
        assert sorted(record.key for record in index.list().images) == ["best", "worst"]
        index.add_many([sized("worse", 1, 100, 100)])
        index.delete("best")
        assert index._delete_if_unchanged(pairs) == 0, "the one to keep is gone"
