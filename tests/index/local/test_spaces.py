"""Vector spaces of several models: migrating, going back to kept vectors, and dropping unused ones."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from index.catalog.spaces import SwitchResult
from index.errors import IndexModelError, IndexSwitchedError
from index.local.index import LocalImageIndex
from index.records import NewImage, VectorModel
from tests.index.helpers import MODEL, image, open_index, picture, sha256, vector

OLD, NEW = MODEL["fingerprint"], "e" * 64


def image_with_both_vectors(key: str, number: int) -> NewImage:
    """Return an image with a vector of each model. The new model's vector is the old one's of another number."""
    vectors = {OLD: vector(number), NEW: vector(1000 + number)}
    return NewImage(key, sha256(number), 3000, 640, 480, None, picture(number), vector(number), vectors)


def add_missing_vectors(index: LocalImageIndex) -> None:
    """Add the missing vectors of the new model; the key of each image is its number."""
    model = index.spaces.target or index.spaces.searched
    missing = index.spaces.missing_vectors(model, 0, 100)
    index.spaces.add_vectors(model, missing, [vector(1000 + int(each.key)) for each in missing])


def distances(index: LocalImageIndex, number: int) -> dict[str, float]:
    return {found.key: found.distance for found in index.search(vector(number)[np.newaxis], 50)[0]}


def test_search_switches_only_when_every_image_has_a_vector(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(4)])
        index.spaces.start_migration(VectorModel(NEW, "solar:2"))
        target = index.spaces.target
        assert target is not None
        add_missing_vectors(index)
        index.add_many([image_with_both_vectors("5", 5)])
        index.delete("0")
        index.add_many([image("6", 6)])  # embedded before the migration started
        assert index.spaces.finish(target, frozenset()) is SwitchResult.INCOMPLETE
        assert index.stats().model == "solar:1"
        assert index.lookup(["5", "6"]).keys() == {"5"}, "6 has no vector of the new model yet"
        assert distances(index, 5)["5"] == 0
        add_missing_vectors(index)
        assert index.spaces.finish(target, frozenset()) is SwitchResult.DONE
        assert index.stats().model == "solar:2"
        assert {key: value == 0 for key, value in distances(index, 1005).items()} == {
            "1": False,
            "2": False,
            "3": False,
            "5": True,
            "6": False,
        }
        with pytest.raises(IndexSwitchedError):
            index.add_many([NewImage("7", sha256(7), 1, 1, 1, None, None, vector(7), {OLD: vector(7)})])
        assert not index.contains("7")
    with open_index(tmp_path, fingerprint=NEW, model="solar:2") as index:
        assert distances(index, 1006)["6"] == 0


def test_a_rollback_is_immediate_and_a_third_model_makes_the_first_unused(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(3)])
        for fingerprint, model in ((NEW, "solar:2"), ("d" * 64, "solar:3")):
            index.spaces.start_migration(VectorModel(fingerprint, model))
            add_missing_vectors(index)
            assert index.spaces.target is not None
            assert index.spaces.finish(index.spaces.target, frozenset()) is SwitchResult.DONE
        index.spaces.drop_unused()
        assert [(space.model, space.active, space.kept) for space in index.spaces.describe()] == [
            ("solar:2", False, True),
            ("solar:3", True, False),
        ]
        index.spaces.start_migration(VectorModel(NEW, "solar:2"))
        assert index.spaces.finish(VectorModel(NEW, "solar:2")) is SwitchResult.DONE
        assert distances(index, 1001)["1"] == 0
        with pytest.raises(IndexModelError):
            index.search(vector(1)[np.newaxis], 1, fingerprint=OLD)
        assert index.search(vector(1001)[np.newaxis], 1, fingerprint="d" * 64)[0][0].key == "1"


def test_search_does_not_switch_if_most_images_cannot_be_embedded(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(4)])
        index.spaces.start_migration(VectorModel(NEW, "solar:2"))
        target = index.spaces.target
        assert target is not None
        missing = index.spaces.missing_vectors(target, 0, 10)
        skipped = frozenset(each.id for each in missing)
        assert index.spaces.finish(target, skipped) is SwitchResult.TOO_FEW_VECTORS
        index.spaces.add_vectors(target, missing[:2], [vector(1000), vector(1001)])
        assert index.spaces.finish(target, frozenset(each.id for each in missing[2:])) is SwitchResult.DONE
        assert distances(index, 1000).keys() == {"0", "1"}


def test_a_vector_space_loaded_during_writes_is_complete(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(300)])
        index.spaces.start_migration(VectorModel(NEW, "solar:2"))
        pages = [
            index.spaces.missing_vectors(index.spaces.target, after, 100)
            for after in (0, 100, 200)
            if index.spaces.target
        ]
        for page in pages:
            assert index.spaces.target is not None
            index.spaces.add_vectors(index.spaces.target, page, [vector(1000 + int(each.key)) for each in page])
    stop = threading.Event()
    with open_index(tmp_path, migrate=True) as index:
        done: list[int] = []

        def write() -> None:
            while not stop.is_set():
                number = 300 + len(done)
                index.add_many([image_with_both_vectors(str(number), number)])
                if number % 3 == 0:
                    index.delete(str(number - 200))
                done.append(number)

        index.spaces.start_migration(VectorModel(OLD, "solar:1"))
        writer = threading.Thread(target=write)
        writer.start()
        while len(done) < 10:
            stop.wait(0.01)
        index.spaces.start_migration(VectorModel(NEW, "solar:2"))  # loads the space from disk
        while index.spaces.finish(VectorModel(NEW, "solar:2")) is SwitchResult.INCOMPLETE:
            add_missing_vectors(index)
        stop.wait(0.2)
        stop.set()
        writer.join()
        assert index.stats().model == "solar:2"
        expected = {record.key for record in index.list(1000).images}
        assert {found.key for found in index.search(vector(1)[np.newaxis], 1000)[0]} == expected
