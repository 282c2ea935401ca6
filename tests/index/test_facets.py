"""Facets count the values of metadata fields, with both kinds of index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from index import facets
from index.catalog.queries import facets as catalog_facets
from index.errors import FilterError, IndexUnavailableError
from index.facets import Facet, Facets
from index.filters import parse_where
from tests.index.helpers import Opener, image

METADATA: list[dict[str, Any]] = [
    {"label": "cat", "year": 2020, "tags": ["a", "b", "b"], "camera": {"model": "D90"}},
    {"label": "cat", "year": 2020.0, "tags": ["a"], "sharp": True},
    {"label": "dog", "year": 1999.5, "tags": [], "sharp": False, "a b": "x"},
    {"label": 7, "year": -3, "note": "x" * 300, "huge": 10**400},
    {"label": "Dog", "sharp": True, "none": None},
    {},
]


def values(facet: Facet) -> list[tuple[Any, int]]:
    return [(each.value, each.count) for each in facet.values]


def by_name(found: Facets) -> dict[tuple[str, str], Facet]:
    return {(facet.name, facet.type.value): facet for facet in found.fields}


@pytest.mark.milvus
def test_fields_have_types_counts_and_their_most_frequent_values(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        assert index.fields(10) == Facets(0, [], True)
        index.add_many([image(str(number), number, metadata) for number, metadata in enumerate(METADATA)])
        found = index.fields(10)
        assert (found.images, found.complete) == (6, True)
        assert [facet.images for facet in found.fields] == sorted((f.images for f in found.fields), reverse=True)
        fields = by_name(found)
        label = fields["label", "string"]
        assert (label.images, label.distinct, values(label)) == (4, 3, [("cat", 2), ("Dog", 1), ("dog", 1)])
        assert (label.minimum, label.maximum) == (None, None)
        assert values(fields["label", "number"]) == [(7, 1)]
        year = fields["year", "number"]
        assert (year.images, year.distinct, year.minimum, year.maximum) == (4, 3, -3, 2020)
        assert values(year)[0] == (2020, 2)
        tags = fields["tags", "string"]
        assert (tags.images, values(tags)) == (2, [("a", 2), ("b", 1)]), "an image counts once, whatever its list has"
        assert values(fields["sharp", "boolean"]) == [(True, 2), (False, 1)]
        assert all(isinstance(value, bool) for value, _ in values(fields["sharp", "boolean"]))
        assert fields["camera.model", "string"].images == fields['"a b"', "string"].images == 1
        note = fields["note", "string"]
        assert (note.images, note.distinct, note.values) == (1, 1, []), "a long text is counted, but not listed"
        huge = fields["huge", "number"]
        assert (huge.images, huge.values, huge.maximum) == (1, [], None), "JSON cannot represent it"
        [short] = index.fields(1, field="label", where=parse_where(["year>=2000"])).fields
        assert (short.images, values(short)) == (2, [("cat", 2)])


@pytest.mark.milvus
def test_a_filter_limits_what_is_counted(open_index: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(number), number, metadata) for number, metadata in enumerate(METADATA)])
        cats = parse_where(["label:cat"])
        few = index.fields(10, where=cats)
        assert (few.images, values(by_name(few)["tags", "string"])) == (2, [("a", 2), ("b", 1)])
        assert ("note", "string") not in by_name(few), "no matching image has it"
        monkeypatch.setattr(catalog_facets, "_MAX_COPIED", 0)  # the way for many matching images
        assert index.fields(10, where=cats) == few
        assert index.fields(10, field="nowhere").fields == []
        with pytest.raises(FilterError, match="no image has had"):
            index.fields(10, where=parse_where(["nowhere:1"]))
        index.delete("0")
        index.change_metadata("1", lambda _: {"label": "bird"})
        assert values(by_name(index.fields(10))["label", "string"]) == [("Dog", 1), ("bird", 1), ("dog", 1)]


@pytest.mark.milvus
def test_the_answer_is_bounded(open_index: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (facets, catalog_facets):
        monkeypatch.setattr(module, "MAX_FIELDS", 5)
    monkeypatch.setattr(facets, "MAX_VALUES", 20)
    with open_index(tmp_path) as index:
        images = [image(str(n), n, {f"field{n}": n, "key": f"image {n:02}", "all": 1}) for n in range(12)]
        index.add_many(images)
        found = index.fields(1000)
        assert not found.complete
        assert [facet.name for facet in found.fields][:2] == ["all", "key"]
        assert len(found.fields) == 5
        key = found.fields[1]
        assert (key.distinct, values(key)) == (12, [(f"image {n:02}", 1) for n in range(4)])
        monkeypatch.setattr(catalog_facets, "_INSTRUCTIONS", 1)
        with pytest.raises(IndexUnavailableError):
            index.fields(10, stopped=lambda: True)
