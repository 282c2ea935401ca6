"""`fc7 index suggestions` and `fc7 index map`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.store import ModelStore
from tests.index.helpers import image
from tests.service.cli.helpers import invoke


@pytest.fixture
def indexed(home: Path) -> Path:
    """Return a home with an index of eight images, two of them labeled."""
    artifact = ModelStore(home).active_artifact()
    with LocalImageIndex.open(home, IndexOptions(artifact.fingerprint, artifact.embedder)) as index:
        index.add_many([image(f"i{n}", n, {"label": f"l{n}"} if n < 2 else None) for n in range(8)])
    return home


def test_suggestions_are_listed_and_written_for_label_studio(indexed: Path, tmp_path: Path) -> None:
    shown = invoke(indexed, "index", "suggestions", "--limit", "3")
    assert shown.exit_code == 0, shown.output
    assert "6 images have no label, 2 have one." in shown.output
    tasks = tmp_path / "tasks.json"
    found = invoke(indexed, "index", "suggestions", "-n", "3", "--json", "--label-studio", tasks)
    keys = [each["key"] for each in json.loads(found.stdout)["suggestions"]]
    assert len(keys) == 3
    written = [task["data"] for task in json.loads(tasks.read_text())]
    assert [data["fc7_key"] for data in written] == keys
    assert all(data["image"].startswith("data:image/jpeg;base64,") for data in written)
    again = invoke(indexed, "index", "suggestions", "--label-studio", tasks)
    assert "already exists" in str(again.exception)


def test_a_map_is_computed_and_written(indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "map.csv"
    made = invoke(indexed, "index", "map", "--method", "pca", "--out", out, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout) == {"model": "tiny:1", "method": "pca", "images": 8}
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["label"]) for row in rows] == [(f"i{n}", f"l{n}" if n < 2 else "") for n in range(8)]
    assert all(abs(float(row[axis])) <= 1.01 for row in rows for axis in "xy")
    assert len(list((indexed / "maps").iterdir())) == 1
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    refused = invoke(indexed, "index", "map")
    assert "fc7[map]" in str(refused.exception)
