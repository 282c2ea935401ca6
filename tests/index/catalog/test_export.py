"""The Parquet export contains every image that matches, with its metadata and vector."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from index.catalog.queries import export
from index.catalog.queries.export import export_parquet
from index.errors import FilterError, TargetExistsError
from index.filters import parse_where
from tests.index.helpers import image, open_index, sha256, vector


def test_the_file_contains_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_empty_index_is_exported_and_a_missing_vector_is_null(tmp_path: Path) -> None:
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
