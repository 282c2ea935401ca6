"""`fc7 classify`, `fc7 search`, `fc7 config` as real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pictures
from tests.support.server import thread_server


def fc7(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FC7_")}
    return subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", *arguments],
        env=environment | {"COLUMNS": "120"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "heron [1].jpg"
    path.write_bytes(pictures.jpeg(1))
    return path


def test_classify_gives_a_table_or_json_equal_to_the_services_answer(home: Path, picture: Path) -> None:
    table = fc7("classify", str(picture), "--home", str(home))
    assert table.returncode == 0, table.stderr
    assert "heron [1].jpg" in table.stdout
    assert "tiny:1" in table.stdout
    plain = fc7("classify", str(picture), "--json", "--ten-views", "-k", "3", FC7_HOME=str(home))
    found = json.loads(plain.stdout)
    with thread_server(home) as server:
        answer = server.client.post("/v1/classify?k=3&views=10", content=picture.read_bytes())
    [result] = answer.json()["results"]
    assert [entry["label"] for entry in found["predictions"]] == [entry["label"] for entry in result["predictions"]]
    assert [entry["probability"] for entry in found["predictions"]] == pytest.approx(
        [entry["probability"] for entry in result["predictions"]], abs=1e-6
    )


def test_search_answers_beside_a_running_server(home: Path, picture: Path) -> None:
    with thread_server(home) as server:
        for seed in range(3):
            assert server.client.put(f"/v1/images/[{seed}]", content=pictures.jpeg(seed)).status_code == 201
        found = fc7("search", str(picture), "-k", "2", "--json", FC7_HOME=str(home))
        table = fc7("search", str(picture), FC7_HOME=str(home))
        refused = fc7("search", str(picture), "--mode", "codes", FC7_HOME=str(home))
    assert found.returncode == 0, found.stderr
    neighbours = json.loads(found.stdout)["neighbours"]
    assert json.loads(found.stdout)["mode"] == "exact"
    assert len(neighbours) == 2
    assert neighbours[0]["key"] == "[1]"
    assert "[1]" in table.stdout
    assert refused.returncode == 1
    assert "fc7 codes train" in refused.stderr


def test_an_unreadable_image_is_reported_and_the_others_are_answered(home: Path, picture: Path) -> None:
    bad = picture.with_name("text.jpg")
    bad.write_text("no picture")
    done = fc7("classify", str(bad), str(picture), str(picture.with_name("none.jpg")), FC7_HOME=str(home))
    assert done.returncode == 1
    assert "text.jpg" in done.stderr
    assert "none.jpg" in done.stderr
    assert "tiny:1" in done.stdout


def test_without_a_model_the_mend_is_told(tmp_path: Path, picture: Path) -> None:
    done = fc7("classify", str(picture), FC7_HOME=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "fc7 train" in done.stderr


def test_config_shows_value_and_source_and_hides_keys(tmp_path: Path) -> None:
    key = "admin-0123456789abcdef"
    done = fc7("config", FC7_HOME=str(tmp_path), FC7_API_KEYS=f"admin:{key}", FC7_MAXBATCH="1", COLUMNS="300")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip().startswith("FC7_")}
    assert "environment" in rows["FC7_HOME"]
    assert "default" in rows["FC7_PORT"]
    assert "admin:********" in rows["FC7_API_KEYS"]
    assert key not in done.stdout + done.stderr
    assert "FC7_MAXBATCH" in done.stderr
