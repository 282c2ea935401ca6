"""`fc7 classify` and `fc7 search` from photographs; `fc7 explain` writes the picture that the server answers with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.service.cli.helpers import call, invoke, run
from tests.support import pictures
from tests.support.novelty import FOREIGN, OWN, publish_with_reference
from tests.support.pictures import jpeg
from tests.support.server import thread_server
from tests.support.training.explainable_model import publish_explainable_model


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "heron [1].jpg"
    path.write_bytes(pictures.jpeg(1))
    return path


def test_classify_prints_a_table_or_json_equal_to_the_services_response(home: Path, picture: Path) -> None:
    table = call("classify", str(picture), "--home", str(home))
    assert table.returncode == 0, table.stderr
    assert "heron [1].jpg" in table.stdout
    assert "tiny:1" in table.stdout
    plain = call("classify", str(picture), "--json", "--views", "10", "-k", "3", FC7_HOME=str(home))
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
        table = call("search", str(picture), FC7_HOME=str(home))
        refused = call("search", str(picture), "--mode", "codes", FC7_HOME=str(home))
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
    done = call("classify", str(bad), str(picture), str(picture.with_name("none.jpg")), FC7_HOME=str(home))
    assert done.returncode == 1
    assert "text.jpg" in done.stderr
    assert "none.jpg" in done.stderr
    assert "tiny:1" in done.stdout


def test_without_a_model_the_fix_is_reported(tmp_path: Path, picture: Path) -> None:
    done = call("classify", str(picture), FC7_HOME=str(tmp_path / "empty"))
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
        assert "unknown  more unusual than 100.0 %" in shown.stdout
        [result] = json.loads(invoke(home, command, path, "--json").stdout)["results"]
        assert result["novelty"] == expected | {"distance": pytest.approx(expected["distance"], rel=1e-4)}
        for accepting in (
            invoke(home, command, path, "--threshold", "1"),
            invoke(home, command, path, FC7_NOVELTY_THRESHOLD="1"),
        ):
            assert "\nknown  more" in accepting.stdout
        for value in ("nan", "1.5", "-1", "95"):
            refused = invoke(home, command, path, "--threshold", value)
            assert refused.exit_code == 2
            assert "--threshold" in refused.stderr


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(3))
    return path


def test_explain_writes_the_pictures_that_the_server_answers_with(tmp_path: Path, photo: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "heat.png"
    publish_explainable_model(home)
    with thread_server(home) as server:
        headers = {"Content-Type": "image/jpeg"}
        assert server.client.put("/v1/images/a.jpg", content=jpeg(1), headers=headers).status_code == 201
        for arguments, parameters in (
            ((), {}),
            (("--class", "poly, sound"), {"class": "poly, sound"}),
            (("--near", "a.jpg"), {"near": "a.jpg"}),
            (("--grid",), {"overlay": "false"}),
        ):
            result = invoke(home, "explain", photo, "--out", out, "--json", *arguments)
            assert result.exit_code == 0, result.output
            answer = server.client.post("/v1/explain", content=jpeg(3), headers=headers, params=parameters)
            assert pixels(out.read_bytes()) == pixels(answer.content)
            document = json.loads(result.stdout)
            answer = server.client.post("/v1/explain", content=jpeg(3), params={**parameters, "format": "json"})
            expected = answer.json()["explanation"]
            assert document["grid"] == expected["grid"]
            assert document.get("class") == expected["class"]
            assert document.get("distance") == expected["distance"]


def pixels(png: bytes) -> bytes:
    """Return the compressed pixels; the description differs."""
    return png[png.index(b"IDAT") :]


def test_wrong_use_of_explain_is_explained(tmp_path: Path, photo: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "heat.png"
    publish_explainable_model(home)
    wrong = invoke(home, "explain", photo, "--out", tmp_path / "heat.jpg")
    assert (wrong.exit_code, ".png" in wrong.output) == (2, True)
    both = invoke(home, "explain", photo, "--out", out, "--class", "1", "--near", "a.jpg")
    assert (both.exit_code, "either" in both.output) == (2, True)
    unknown = invoke(home, "explain", photo, "--out", out, "--class", "poly, sond")
    assert unknown.exit_code == 1
    assert "'poly, sound'" in str(unknown.exception)
    (tmp_path / "text.jpg").write_text("text")
    assert invoke(home, "explain", tmp_path / "text.jpg", "--out", out).exit_code == 1
    assert invoke(home, "explain", tmp_path / "absent.jpg", "--out", out).exit_code == 1
    assert not out.exists()


def test_a_version_of_an_earlier_release_gets_the_graph_in_a_new_version(tmp_path: Path, photo: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "heat.png"
    publish_explainable_model(home, explainable=False)
    refused = invoke(home, "explain", photo, "--out", out)
    assert "fc7 models add-explanations small:1" in str(refused.exception)
    assert "Published small:2" in invoke(home, "models", "add-explanations", "small:1").output
    assert invoke(home, "explain", photo, "--out", out, "--model", "small:2").exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    archive = tmp_path / "small.fc7.tar"
    assert invoke(home, "models", "save", "small:2", archive).exit_code == 0
    assert invoke(tmp_path / "other", "models", "load", archive).exit_code == 0
    assert invoke(tmp_path / "other", "explain", photo, "--out", out, "--model", "small:1").exit_code == 0
