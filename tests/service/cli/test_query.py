"""`fc7 classify` and `fc7 search` as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.service.cli.helpers import invoke, run
from tests.support import pictures
from tests.support.novelty import FOREIGN, OWN, publish_with_reference
from tests.support.server import thread_server


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "heron [1].jpg"
    path.write_bytes(pictures.jpeg(1))
    return path


def test_classify_prints_a_table_or_json_equal_to_the_services_response(home: Path, picture: Path) -> None:
    table = run("classify", str(picture), "--home", str(home))
    assert table.returncode == 0, table.stderr
    assert "heron [1].jpg" in table.stdout
    assert "tiny:1" in table.stdout
    plain = run("classify", str(picture), "--json", "--views", "10", "-k", "3", FC7_HOME=str(home))
    [found] = json.loads(plain.stdout)["results"]
    with thread_server(home) as server:
        answer = server.client.post("/v1/classify?k=3&views=10", content=picture.read_bytes())
    [result] = answer.json()["results"]
    assert found["novelty"] is result["novelty"] is None
    assert [entry["label"] for entry in found["predictions"]] == [entry["label"] for entry in result["predictions"]]
    assert [entry["probability"] for entry in found["predictions"]] == pytest.approx(
        [entry["probability"] for entry in result["predictions"]], abs=1e-6
    )


def test_search_works_while_a_server_is_running(home: Path, picture: Path) -> None:
    with thread_server(home) as server:
        for seed in range(3):
            assert server.client.put(f"/v1/images/[{seed}]", content=pictures.jpeg(seed)).status_code == 201
        found = run("search", str(picture), "-k", "2", "--json", FC7_HOME=str(home))
        table = run("search", str(picture), FC7_HOME=str(home))
        refused = run("search", str(picture), "--mode", "codes", FC7_HOME=str(home))
    assert found.returncode == 0, found.stderr
    [result] = json.loads(found.stdout)["results"]
    neighbours = result["neighbours"]
    assert json.loads(found.stdout)["mode"] == "exact"
    assert len(neighbours) == 2
    assert neighbours[0]["key"] == "[1]"
    assert "[1]" in table.stdout
    assert refused.returncode == 1
    assert "fc7 codes train" in refused.stderr


def test_an_unreadable_image_is_reported_and_the_others_are_classified(home: Path, picture: Path) -> None:
    bad = picture.with_name("text.jpg")
    bad.write_text("no picture")
    done = run("classify", str(bad), str(picture), str(picture.with_name("none.jpg")), FC7_HOME=str(home))
    assert done.returncode == 1
    assert "text.jpg" in done.stderr
    assert "none.jpg" in done.stderr
    assert "tiny:1" in done.stdout


def test_without_a_model_the_fix_is_reported(tmp_path: Path, picture: Path) -> None:
    done = run("classify", str(picture), FC7_HOME=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "fc7 train" in done.stderr


def test_classify_and_search_show_whether_an_image_is_unknown(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "foreign.png"
    publish_with_reference(home)
    path.write_bytes(FOREIGN)
    with thread_server(home) as server:
        server.client.put("/v1/images/own", content=OWN).raise_for_status()
        expected = server.client.post("/v1/classify", content=FOREIGN).json()["results"][0]["novelty"]
    for command in ("classify", "search"):
        shown = invoke(home, command, path)
        assert "unknown  farther from the training images than 100.0 %" in shown.stdout
        [result] = json.loads(invoke(home, command, path, "--json").stdout)["results"]
        assert result["novelty"] == expected | {"distance": pytest.approx(expected["distance"], rel=1e-4)}
        for accepting in (
            invoke(home, command, path, "--threshold", "1"),
            invoke(home, command, path, FC7_NOVELTY_THRESHOLD="1"),
        ):
            assert "\nknown  farther" in accepting.stdout
        for value in ("nan", "1.5", "-1", "95"):
            refused = invoke(home, command, path, "--threshold", value)
            assert refused.exit_code == 2
            assert "--threshold" in refused.stderr
