"""`fc7 config`: values, sources and secrets of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.service.cli.helpers import call, invoke

KEY = "admin-0123456789abcdef"


def test_value_and_source_are_shown_and_keys_are_hidden(tmp_path: Path) -> None:
    done = call("config", FC7_HOME=str(tmp_path), FC7_API_KEYS=f"admin:{KEY}", FC7_MAXBATCH="1")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip().startswith("FC7_")}
    assert "environment" in rows["FC7_HOME"]
    assert "default" in rows["FC7_PORT"]
    assert "admin:********" in rows["FC7_API_KEYS"]
    assert KEY not in done.stdout + done.stderr
    assert "FC7_MAXBATCH" in done.stderr
    assert "Next: " in done.stderr


def test_piped_output_has_one_line_per_setting(tmp_path: Path) -> None:
    home = str(tmp_path / ("a" * 60))
    done = call("config", FC7_HOME=home, COLUMNS="40")
    documents = json.loads(call("config", "--json", FC7_HOME=home).stdout)
    lines = done.stdout.splitlines()
    assert len(lines) == len(documents) + 1
    for line, entry in zip(lines[1:], documents, strict=True):
        assert line.split()[0] == entry["variable"]
        assert entry["description"] in line


def test_json_has_every_column_and_hides_keys(tmp_path: Path) -> None:
    done = call("config", "--json", FC7_HOME=str(tmp_path), FC7_API_KEYS=f"admin:{KEY}", FC7_MAXBATCH="1")
    entries = {entry["variable"]: entry for entry in json.loads(done.stdout)}
    assert entries["FC7_HOME"]["value"] == str(tmp_path)
    assert entries["FC7_HOME"]["source"] == "environment"
    assert entries["FC7_PORT"]["source"] == "default"
    assert entries["FC7_THREADS"]["value"] is None
    assert entries["FC7_API_KEYS"]["value"] == "admin:********"
    assert KEY not in done.stdout
    assert "FC7_MAXBATCH" in done.stderr


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def values(**variables: str) -> dict[str, str]:
        shown = invoke(Path("state"), "config", "--json", **variables)
        return {entry["variable"]: entry["value"] for entry in json.loads(shown.stdout)}

    found = values(FC7_INDEX_URI="milvus.db")
    assert found["FC7_HOME"] == str(tmp_path / "state")
    assert found["FC7_INDEX_URI"] == str(tmp_path / "milvus.db")
    assert values(FC7_INDEX_URI="http://milvus:19530")["FC7_INDEX_URI"] == "http://milvus:19530"
    assert str(tmp_path / "state") in invoke(Path("state"), "config").stdout
