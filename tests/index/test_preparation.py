"""Images that an earlier version of the preparation prepared are counted, and replaced when they are added again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from index.factory import read_stats
from index.local.verify import verify
from index.records import AddOutcome
from model_store.image import PREPARATION
from tests.index.helpers import Opener, image, picture, sha256, vector
from tests.index.helpers import open_index as open_local


def test_an_image_of_an_earlier_preparation_is_replaced(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([replace(image("old", 1, {"n": 1}), preparation=1), image("new", 2)])
        assert index.stats().outdated == 1
        assert index.lookup(["old", "new"]) == {"new": sha256(2)}
        index.change_metadata("old", lambda metadata: {**metadata, "m": 2})
        assert index.stats().outdated == 1, "changing the metadata does not prepare the image"

        again = replace(image("old", 1), vector=vector(3), picture=picture(3))
        assert index.add_many([again]) == [AddOutcome.REPLACED]
        assert index.stats().outdated == 0
        assert index.lookup(["old"]) == {"old": sha256(1)}
        assert index.get("old").metadata == {"n": 1, "m": 2}
        assert index.picture("old") == picture(3), "the picture of the earlier preparation is replaced"
        [nearest] = index.search(vector(3)[np.newaxis], 1)[0]
        assert (nearest.key, nearest.distance) == ("old", 0.0)
        assert index.add_many([again]) == [AddOutcome.UNCHANGED]


def test_images_of_a_catalog_without_versions_count_as_the_first_version(tmp_path: Path) -> None:
    with open_local(tmp_path) as index:
        index.add_many([image("a", 1), image("b", 2)])
    with closing(sqlite3.connect(tmp_path / "index" / "catalog.db", isolation_level=None)) as connection:
        connection.execute("DROP INDEX images_of_preparation")
        connection.execute("ALTER TABLE images DROP COLUMN preparation")
        connection.execute("DROP INDEX images_of_update")
        connection.execute("PRAGMA user_version = 2")
    assert PREPARATION > 1
    assert read_stats(tmp_path).outdated == 2
    report = verify(tmp_path)
    assert (report.images, report.outdated, report.findings) == (2, 2, [])
    with open_local(tmp_path) as index:
        assert index.stats().outdated == 2
        assert index.lookup(["a", "b"]) == {}
        assert index.add_many([image("a", 1)]) == [AddOutcome.REPLACED]
    assert read_stats(tmp_path).outdated == 1
