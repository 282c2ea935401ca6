"""Labels of indexed images: stored vectors with a metadata field, and which values are labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import FilterError, IndexModelError, KeyNotFoundError
from index.filters import has_field, has_value, parse_field, parse_where
from index.interface import ImageIndex
from index.labels import label_of
from index.local.index import LocalImageIndex
from index.records import IndexOptions
from tests.index.helpers import Opener, image, vector

METADATA: dict[str, dict[str, Any]] = {
    "a": {"label": "cat", "sharp": True, "camera": {"model": "D90"}, "mixed": "7"},
    "b": {"label": "dog", "sharp": False, "camera": {"model": "X"}, "mixed": 7},
    "c": {"label": "", "tags": ["wet", "dark"], "mixed": False},
    "d": {"label": None},
    "e": {"year": -1e300},
}


@pytest.fixture
def index(open_index: Opener, tmp_path: Path) -> Iterator[ImageIndex]:
    with open_index(tmp_path) as index:
        index.add_many([image(key, n, metadata) for n, (key, metadata) in enumerate(METADATA.items())])
        yield index


def values_of(index: ImageIndex, field: str, *where: str, only_labelled: bool = True) -> dict[str, Any]:
    found = {}
    for batch in index.labelled_vectors(field, only_labelled=only_labelled, where=parse_where(where)):
        assert batch.missing == []
        for key, value, row in zip(batch.keys, batch.values, batch.vectors, strict=True):
            found[key] = value
            assert (row == vector(list(METADATA).index(key)).astype(np.float16)).all()
    return found


def test_vectors_come_with_the_values_of_a_field(index: ImageIndex) -> None:
    assert values_of(index, "label") == {"a": "cat", "b": "dog", "c": ""}
    assert values_of(index, "label", only_labelled=False) == {"a": "cat", "b": "dog", "c": "", "d": None, "e": None}
    assert values_of(index, "camera.model") == {"a": "D90", "b": "X"}
    assert values_of(index, "sharp") == {"a": True, "b": False}
    assert values_of(index, "mixed") == {"a": "7", "b": 7, "c": False}
    assert values_of(index, "tags") == {"c": ["wet", "dark"]}
    assert values_of(index, "year") == {"e": -1e300}
    assert values_of(index, "mixed", "label:cat,dog") == {"a": "7", "b": 7}
    assert values_of(index, "not.a.field") == {}
    index.change_metadata("a", lambda _: {})
    assert values_of(index, "label") == {"b": "dog", "c": ""}


@pytest.mark.parametrize("field", ["", "label:cat", "label.", ".label", "a b", '"open'])
def test_a_malformed_field_is_rejected(index: ImageIndex, field: str) -> None:
    with pytest.raises(FilterError):
        index.labelled_vectors(field)


def test_only_images_with_the_field_are_searched(index: ImageIndex) -> None:
    query = vector(4)[np.newaxis]  # the image e, which has no label
    for field, keys in (("label", "abc"), ("sharp", "ab"), ("mixed", "abc"), ("year", "e"), ("none", "")):
        [found] = index.search(query, 10, where=has_field(parse_field(field)))
        assert "".join(sorted(neighbour.key for neighbour in found)) == keys
    listed = index.list(10, where=has_field(parse_field("label"), parse_where(["sharp:true"]))).images
    assert [record.key for record in listed] == ["a"]


def test_images_with_a_value_are_counted(index: ImageIndex) -> None:
    assert [index.count(has_value(("mixed",), value)) for value in ("7", 7, False, True, "8")] == [1, 1, 1, 0, 0]
    assert index.count(has_value(("label",), "cat")) == 1
    index.change_metadata("b", lambda _: {"label": "cat"})
    assert index.count(has_value(("label",), "cat")) == 2  # counts are kept only until the next write


def test_images_without_a_vector_of_the_model_are_counted(tmp_path: Path) -> None:
    with LocalImageIndex.open(tmp_path, _options("f")) as index:
        index.add_many([image("old", 0, {"label": "cat"})])
    with LocalImageIndex.open(tmp_path, _options("e")) as index:
        index.add_many([image("new", 1, {"label": "dog"})])
        [batch] = index.labelled_vectors("label")
        assert (batch.keys, batch.values, batch.missing) == (["new"], ["dog"], ["cat"])
        with pytest.raises(IndexModelError, match="solar:f"):
            next(index.labelled_vectors("label", fingerprint="d" * 64))


def _options(digit: str) -> IndexOptions:
    return IndexOptions(digit * 64, f"solar:{digit}", switch=True)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("cat", "cat"),
        (" cat\t", "cat"),
        ("Cafe\u0301", "Caf\u00e9"),
        (3, "3"),
        (3.0, "3"),
        (0.5, "0.5"),
        (True, "true"),
        (["cat"], "cat"),
        ([["cat"]], None),
        (["cat", "dog"], None),
        ([], None),
        ("", None),
        (" ", None),
        (None, None),
        ({"name": "cat"}, None),
    ],
)
def test_which_values_are_labels(value: object, label: str | None) -> None:
    assert label_of(value) == label


def test_several_images_change_completely_or_not_at_all(index: ImageIndex) -> None:
    done = index.change_keys(["a", "b", "a"], lambda old: old | {"label": "cat"})
    assert (done.matched, done.changed) == (2, 1)
    with pytest.raises(KeyNotFoundError):
        index.change_keys(["a", "missing"], lambda _: {})
    assert index.get("a").metadata["label"] == "cat"
    assert index.change_keys([], lambda _: {}).matched == 0


def test_images_that_match_change(index: ImageIndex) -> None:
    cats = parse_where(["label:cat,dog"])
    assert cats is not None
    done = index.change_matching(cats, lambda old: old | {"label": "dog"})
    assert (done.matched, done.changed) == (2, 1)
    assert values_of(index, "label") == {"a": "dog", "b": "dog", "c": ""}
    assert index.change_matching(cats, lambda _: {}, stopped=lambda: True).matched == 0
