"""Metadata filters: what they match, in listings and inside the search, and which ones are rejected."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.catalog import attributes
from index.catalog.catalog import Catalog
from index.catalog.database import MIGRATIONS
from index.cursor import Listing
from index.errors import CursorError, FilterError, KeyNotFoundError, MetadataError
from index.fields import attributes as attributes_of
from index.filters import Where, parse_where
from index.interface import ImageIndex, Update
from index.local.index import LocalImageIndex
from tests.index.helpers import Opener, exact, image, picture, sha256, vector

METADATA: dict[str, dict[str, Any]] = {
    "a": {"label": "cat", "year": 2019, "sharp": True, "camera": {"model": "D90"}, "tags": ["wet", "dark"]},
    "b": {"label": "dog", "year": 2020, "sharp": False, "camera": {"model": "X, Y"}, "zip": "01234"},
    "c": {"label": "cat", "year": 2020.5, "tags": ["dry"], "shot at": "2020-01-31", "grüße": "ja"},
    "d": {"label": 'say "hi"', "year": -3, "a.b": 1, "mixed": "7", "on": "true"},
    "e": {"label": None, "deep": [[1], {"x": 2}], "mixed": 7, "year": 10**30, "on": True},
}


@pytest.fixture
def index(open_index: Opener, tmp_path: Path) -> Iterator[ImageIndex]:
    with open_index(tmp_path) as index:
        index.add_many([image(key, n, metadata) for n, (key, metadata) in enumerate(METADATA.items())])
        yield index


def keys(index: ImageIndex, *where: str) -> str:
    """Return the keys that match, and check that listing and searching find the same ones."""
    parsed = parse_where(where)
    listed = "".join(record.key for record in index.list(100, where=parsed).images)
    found = index.search(vector(1)[np.newaxis], 100, where=parsed)[0]
    assert "".join(sorted(neighbour.key for neighbour in found)) == listed
    return listed


def replace_by(metadata: dict[str, Any]) -> Update:
    return lambda _: metadata


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["label:cat"], "ac"),
        (["label=cat"], "ac"),
        (["label:cat,dog"], "abc"),
        (['label:"cat", "dog"'], "abc"),
        (['label:"say \\"hi\\""'], "d"),
        (['label:say "hi"'], "d"),
        (["label : cat "], "ac"),
        (["year:2020"], "b"),
        (["year:2020.0"], "b"),
        (["year>=2020"], "bce"),
        (["year>2020"], "ce"),
        (["year<2020"], "ad"),
        (["year<=-3"], "d"),
        (["year>=2020", "year<2021"], "bc"),
        (["year:1e30"], "e"),
        (["sharp:true"], "a"),
        (["sharp:true,false"], "ab"),
        (["camera.model:D90"], "a"),
        (['camera.model:"X, Y"'], "b"),
        (["tags:dark"], "a"),
        (["tags:dark,dry"], "ac"),
        (["tags:wet", "tags:dark"], "a"),
        (["tags:wet", "label:dog"], ""),
        (["zip:01234"], "b"),
        (['"shot at">=2020-01'], "c"),
        (['"shot at">2020-02'], ""),
        (["grüße:ja"], "c"),
        (['"a.b":1'], "d"),
        (["mixed:7"], "de"),
        (['mixed:"7"'], "d"),
        (["mixed>=6"], "e"),
        (["on:true"], "de"),
        (['on:"true"'], "d"),
        (["label:nobody"], ""),
    ],
)
def test_a_filter_finds_the_matching_images(index: ImageIndex, where: list[str], expected: str) -> None:
    assert keys(index, *where) == expected


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "does not start with a field name"),
        (":cat", "does not start with a field name"),
        ("label", "no operator"),
        ("label!cat", "no operator"),
        ("label.:cat", "does not start with a field name"),
        ("label:", "empty"),
        ("label:cat,", "empty"),
        ("label:,cat", "empty"),
        ('label:"cat', "quote that is not closed"),
        ('label:"cat"dog', "quote that is not closed"),
        ('label:"\\q"', "not a valid JSON string"),
        ('label:"\\ud800"', "not a valid JSON string"),
        ("year>=1,2", "2 values, but at most 1"),
        ("label:" + "x," * 100 + "x", "101 values"),
        ("lable:cat", "the field lable, which no image has had; did you mean label"),
        ("camera:D90", "the field camera, which no image has had"),
        ("deep:1", "which no image has had"),
        ("year:abc", "year, which holds numbers, with 'abc'"),
        ("year:2020,abc", "with 'abc'"),
        ('year:"2020"', "with '2020'"),
        ("sharp:1", "sharp, which holds booleans, with '1'"),
        ("sharp>true", "sharp, which holds booleans, with a range"),
        ("mixed:x,8,y", ""),
    ],
)
def test_an_invalid_filter_is_rejected_with_the_reason(index: ImageIndex, where: str, words: str) -> None:
    if not words:  # a field with several types accepts values of each type
        assert keys(index, where) == ""
        return
    for use in (lambda w: index.list(1, where=w), lambda w: index.search(vector(0)[None], 1, where=w)):
        with pytest.raises(FilterError) as caught:
            use(parse_where([where]))
        assert words in str(caught.value)
    with pytest.raises(FilterError):
        index.delete_where(parse_where([where]) or Where(()))
    assert index.stats().images == len(METADATA)


def test_too_many_filters_are_rejected_and_an_empty_list_is_no_filter() -> None:
    with pytest.raises(FilterError, match="exceeds the limit of 16 filters"):
        parse_where(["a:1"] * 17)
    assert parse_where([]) is None


def test_k_matching_neighbors_are_found_even_if_others_are_nearer(open_index: Opener, tmp_path: Path) -> None:
    vectors = np.stack([vector(n) for n in range(300)])
    rare = set(range(7, 300, 50))
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n:03}", n, {"rare": n in rare, "n": n}) for n in range(300)])
        where = parse_where(["rare:true"])
        for query in (0, 7, 250):
            distances = exact(vectors, vector(query))
            expected = sorted(rare, key=lambda n: distances[n])
            found = index.search(vector(query)[np.newaxis], 6, where=where)[0]
            assert [neighbour.key for neighbour in found] == [f"{n:03}" for n in expected]
            similar = index.similar(f"{query:03}", 6, where=where)
            assert [neighbour.key for neighbour in similar] == [f"{n:03}" for n in expected if n != query]
        half = index.search(vectors[:3], 6, where=parse_where(["n<150"]))
        for query, answer in enumerate(half):
            distances = exact(vectors[:150], vector(query))
            assert [neighbour.key for neighbour in answer] == [f"{n:03}" for n in np.argsort(distances)[:6]]


def test_a_filtered_search_sees_all_earlier_changes(index: ImageIndex) -> None:
    assert keys(index, "label:cat") == "ac"
    index.add_many([image("f", 20, {"label": "cat"}), image("a", 21, {"label": "cow"})])
    assert keys(index, "label:cat") == "cf"
    assert keys(index, "label:cow") == "a"
    index.change_metadata("c", lambda metadata: {**metadata, "label": "cow"})
    assert keys(index, "label:cat") == "f"
    assert keys(index, "label:cow") == "ac"
    index.add_many([image("c", 22)])  # new bytes, but the metadata stays
    assert keys(index, "label:cow") == "ac"
    index.delete("a")
    assert keys(index, "label:cow") == "c"
    assert keys(index, "camera.model:D90") == "", "a field is still known after its only image was deleted"


def test_filters_agree_with_python_on_random_metadata(open_index: Opener, tmp_path: Path) -> None:
    rng = random.Random(3)
    words = ["x", "y", "z", "12", "true"]

    def scalar() -> Any:
        return rng.choice([rng.choice(words), rng.randint(-2, 13), rng.random() < 0.5])

    everything = {f"{n:03}": {name: scalar() for name in "pqr" if rng.random() < 0.8} for n in range(80)}
    with open_index(tmp_path) as index:
        index.add_many([image(key, n, metadata) for n, (key, metadata) in enumerate(everything.items())])
        for _ in range(60):
            key = rng.choice(list(everything))
            everything[key] = {name: scalar() for name in "pqr" if rng.random() < 0.8}
            index.change_metadata(key, replace_by(everything[key]))
            name, value = rng.choice("pqr"), rng.choice(words)
            expected = [
                key
                for key, metadata in sorted(everything.items())
                if (current := metadata.get(name)) == value
                or (value == "12" and current == 12 and not isinstance(current, bool))
                or (value == "true" and current is True)
            ]
            listed = index.list(100, where=parse_where([f"{name}:{value}"])).images
            assert [record.key for record in listed] == expected
        if not isinstance(index, LocalImageIndex):
            return
        connection = sqlite3.connect(tmp_path / "index" / "catalog.db")
        for number, key in connection.execute("SELECT id, key FROM images").fetchall():
            assert attributes.load(connection, number) == attributes_of(everything[key])
        connection.close()


def test_delete_where_deletes_only_the_matching_images(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n % 40, {"n": n}) for n in range(1040)])
        where = parse_where(["n>=20", "n<1030"])
        assert where is not None
        commits = index._catalog.writer.commits if isinstance(index, LocalImageIndex) else 0
        assert index.delete_where(where) == 1010
        if isinstance(index, LocalImageIndex):
            assert index._catalog.writer.commits - commits == 11, "batches of 100"
        assert index.delete_where(where) == 0
        assert index.stats().vectors == index.stats().images == 30
        assert {record.metadata["n"] for record in index.list(100).images} == {*range(20), *range(1030, 1040)}
        assert len(index.search(vector(25)[np.newaxis], 100)[0]) == 30


def test_a_filtered_listing_returns_each_image_once_and_binds_its_cursor(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n:03}", n, {"even": n % 2 == 0}) for n in range(60)])
        even, odd = parse_where(["even:true"]), parse_where(["even:false"])
        seen: list[str] = []
        cursor = None
        while True:
            page = index.list(7, cursor, where=even)
            seen += [record.key for record in page.images]
            index.add_many([image(f"new{len(seen)}", 100 + len(seen), {"even": True}), image("040", 500)])
            if len(seen) == 14:
                index.delete("050")
            cursor = page.next_cursor
            if cursor is None or len(seen) > 60:
                break
            for other in (odd, None):
                with pytest.raises(CursorError, match="another filter"):
                    index.list(7, cursor, where=other)
        throughout = [f"{n:03}" for n in range(0, 60, 2) if n != 50]
        assert [key for key in seen if not key.startswith("new")] == throughout
        assert len(set(seen)) == len(seen)


def test_metadata_is_changed_completely_or_not_at_all(index: ImageIndex) -> None:
    before = index.get("a")
    record = index.change_metadata("a", lambda metadata: {"label": metadata["label"], "new": [1, None]})
    assert record.metadata == index.get("a").metadata == {"label": "cat", "new": [1, None]}
    assert (record.added, record.sha256) == (before.added, before.sha256)
    assert record.updated > before.updated
    assert index.picture("a") == picture(0)
    assert index.search(vector(0)[np.newaxis], 1)[0][0].distance == 0
    assert index.change_metadata("a", lambda metadata: metadata).updated == record.updated, "no change"
    for bad in ({"x": "y" * 17_000}, {"x": float("nan")}):
        with pytest.raises(MetadataError):
            index.change_metadata("a", replace_by(bad))
    assert index.get("a") == record
    with pytest.raises(KeyNotFoundError):
        index.change_metadata("nobody", lambda metadata: metadata)


def test_a_catalog_of_format_1_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "index" / "catalog.db"
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(MIGRATIONS[0])
    connection.execute("INSERT INTO meta VALUES ('identity', 'abc')")
    connection.execute(
        "INSERT INTO images VALUES (3, 'old', ?, 3000, 640, 480, '{\"label\":\"cat\"}', 1, 2)", (sha256(5),)
    )
    connection.execute("INSERT INTO pictures VALUES (3, ?)", (picture(5),))
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    with Catalog(path) as catalog:
        [found] = catalog.page(10, None, Listing(parse_where(["label:cat"]), "", "added", 0)).images
        assert (found.key, found.sha256) == ("old", sha256(5))
        rows = catalog._all(
            "SELECT i.crc = crc32(key, sha256, size, width, height, metadata, added, updated), p.crc "
            "= crc32(jpeg) FROM images i JOIN pictures p ON p.image_id = i.id"
        )
        assert rows == [(1, 1)]
