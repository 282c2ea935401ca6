"""The index as a Parquet file, and the pairs in it that are nearly the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from index.catalog import export
from index.catalog.export import export_parquet
from index.errors import FilterError, TargetExistsError
from index.filters import parse_where
from index.records import NewImage
from index.search import duplicates
from index.search.duplicates import near_pairs
from index.search.searcher import Searcher
from tests.index.helpers import image, open_index, sha256, vector


def test_the_parquet_file_has_every_image_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_GROUP_ROWS", 8)
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n}", n, {"n": n, "grüße": ["a"]}) for n in range(20)])
        calls: list[tuple[int, int]] = []
        assert export_parquet(tmp_path, tmp_path / "all.parquet", advance=lambda *call: calls.append(call)) == 20
        records = index.list(100).images
    assert calls == [(8, 20), (16, 20), (20, 20)]
    file = pyarrow.parquet.ParquetFile(tmp_path / "all.parquet")
    assert file.num_row_groups == 3
    assert file.schema_arrow.metadata[b"fc7.model"] == b"solar:1"
    table = file.read()
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [str(n) for n in range(20)]
    assert [json.loads(row["metadata"]) for row in rows] == [record.metadata for record in records]
    assert [(row["added"], row["updated"], row["width"]) for row in rows] == [
        (r.added, r.updated, 640) for r in records
    ]
    assert rows[3]["sha256"] == sha256(3)
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(vectors, np.stack([vector(n) for n in range(20)]).astype(np.float16).astype(np.float32))
    assert export_parquet(tmp_path, tmp_path / "some.parquet", where=parse_where(["n>=18"])) == 2
    with pytest.raises(TargetExistsError):
        export_parquet(tmp_path, tmp_path / "all.parquet")
    with pytest.raises(FilterError):
        export_parquet(tmp_path, tmp_path / "none.parquet", where=parse_where(["m:1"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "index", "some.parquet"]


def test_an_image_without_a_vector_has_null_and_an_empty_index_a_file(tmp_path: Path) -> None:
    open_index(tmp_path).close()
    assert export_parquet(tmp_path, tmp_path / "empty.parquet") == 0
    assert pyarrow.parquet.read_table(tmp_path / "empty.parquet").num_rows == 0
    with open_index(tmp_path) as index:
        index.add_many([image("old", 1)])
    with open_index(tmp_path, fingerprint="e" * 64, model="lunar:1", switch=True) as index:
        index.add_many([image("new", 2)])
    export_parquet(tmp_path, tmp_path / "two.parquet")
    vectors = {row["key"]: row["vector"] for row in pyarrow.parquet.read_table(tmp_path / "two.parquet").to_pylist()}
    assert vectors["old"] is None
    assert vectors["new"] is not None


def test_near_pairs_are_those_that_numpy_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    monkeypatch.setattr(duplicates, "_AXES", 16)
    monkeypatch.setattr(duplicates, "_SAMPLE", 100)
    chance = np.random.default_rng(4)
    rows = np.stack([vector(n) for n in range(250)])
    # Near-duplicates at many distances, exact ones, and some on one side of the threshold by little.
    rows = np.concatenate(
        [rows, rows[:120] + chance.standard_normal((120, 4096)) * np.geomspace(0.01, 1, 120)[:, None]]
    )
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


def test_duplicates_have_keys_and_hold_a_filter(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        assert index.duplicates(10, 10) == []
        index.add_many([image(str(n), n, {"even": n % 2 == 0}) for n in range(10)])
        near = vector(4) + np.float32(0.01)
        index.add_many(
            [NewImage("near 4", "a" * 64, 1, 1, 1, {"even": True}, None, near), image("as 3", 3, {"even": False})]
        )
        found = index.duplicates(5, 10)
        assert [(pair.first, pair.second) for pair in found] == [("3", "as 3"), ("4", "near 4")]
        assert found[0].distance == 0
        assert 0 < found[1].distance < 1
        assert [pair.second for pair in index.duplicates(5, 10, where=parse_where(["even:true"]))] == ["near 4"]
        index.delete("3")
        assert [pair.second for pair in index.duplicates(5, 10)] == ["near 4"]
