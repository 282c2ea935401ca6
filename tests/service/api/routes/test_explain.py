"""`POST /v1/explain` and `explain=true` over HTTP: the map of the requested class or neighbor, and clear refusals."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model_store.artifact import Artifact
from model_store.image import prepare, views
from model_store.runtime.explainer import Explainer, Target
from model_store.runtime.options import RunnerOptions
from model_store.store import ModelStore
from service.errors import MemoryShortError
from service.inference import explaining
from tests.support.pictures import jpeg
from tests.support.server import ThreadServer, thread_server
from tests.support.training.explainable_model import LABELS, publish_explainable_model

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("explain") / "home"
    publish_explainable_model(home, "old", explainable=False)
    publish_explainable_model(home)
    with thread_server(home, max_loaded=3) as running:
        for seed in range(2):
            added = running.client.put(f"/v1/images/picture-{seed}.jpg", content=jpeg(seed), headers=JPEG)
            assert added.status_code == 201, added.text
        yield running


@pytest.fixture(scope="module")
def artifact(server: ThreadServer) -> Artifact:
    return ModelStore(server.state.settings.home).active_artifact()


@pytest.fixture(scope="module")
def explainer(artifact: Artifact) -> Explainer:
    return Explainer(artifact, RunnerOptions(device="cpu"))


def explain(server: ThreadServer, data: bytes, **parameters: Any) -> httpx.Response:
    return server.client.post("/v1/explain", content=data, headers=JPEG, params=parameters)


def explanation(server: ThreadServer, data: bytes, **parameters: Any) -> dict[str, Any]:
    answer = explain(server, data, format="json", **parameters)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["model"] == {"name": "small", "version": 1}
    found: dict[str, Any] = document["explanation"]
    return found


def refused(answer: httpx.Response, status: int, slug: str) -> str:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["type"] == f"urn:fc7:problem:{slug}"
    detail: str = problem["detail"]
    return detail


def picture_of(png: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.size, picture.mode, picture.format) == ((224, 224), "RGB", "PNG")
        return np.asarray(picture).astype(int)


def grid_of(explainer: Explainer, data: bytes, target: Target) -> np.ndarray[Any, Any]:
    heat = explainer.run(views(prepare(data)), [target]).heat
    return np.asarray(heat[0] / max(heat.max(), 1e-30))


@pytest.mark.parametrize(("name", "index"), [("poly, sound", 1), ("0", 0), ("2", 2), ("1", 2)])
def test_the_map_is_that_of_the_class_by_label_or_else_by_index(
    server: ThreadServer, explainer: Explainer, name: str, index: int
) -> None:
    found = explanation(server, jpeg(3), **{"class": name})
    assert (found["class"], found["index"], found["near"], found["distance"]) == (LABELS[index], index, None, None)
    expected = grid_of(explainer, jpeg(3), Target(index))
    np.testing.assert_allclose(found["grid"], expected, atol=1e-5)
    assert expected.shape == (13, 13)


def test_without_a_class_the_most_probable_one_is_explained(server: ThreadServer, explainer: Explainer) -> None:
    for seed in range(4):
        answer = server.client.post("/v1/classify", content=jpeg(seed), headers=JPEG).json()
        best = answer["results"][0]["predictions"][0]
        found = explanation(server, jpeg(seed))
        assert (found["class"], found["index"]) == (best["label"], best["index"])
        np.testing.assert_allclose(found["grid"], grid_of(explainer, jpeg(seed), Target(best["index"])), atol=1e-5)


def test_the_answer_is_a_picture_of_the_crop_under_the_map(server: ThreadServer) -> None:
    answers = [explain(server, jpeg(3), overlay=overlay) for overlay in (True, False)]
    pictures = []
    for answer in answers:
        assert answer.headers["content-type"] == "image/png"
        pictures.append(picture_of(answer.content))
    crop = views(prepare(jpeg(3)))[0].astype(int)
    cold = np.array(explanation(server, jpeg(3))["grid"]) == 0
    rows, columns = np.nonzero(cold[1:-1, 1:-1] & cold[:-2, 1:-1] & cold[2:, 1:-1] & cold[1:-1, :-2] & cold[1:-1, 2:])
    assert len(rows), "a cold part of the picture"
    for row, column in zip(rows + 1, columns + 1, strict=True):
        y, x = int((row + 0.5) * 224 / 13), int((column + 0.5) * 224 / 13)
        assert (pictures[0][y, x] == crop[y, x]).all(), "a cold part keeps its colors"
    assert (pictures[0] != crop).any()
    assert len(np.unique(pictures[1].reshape(-1, 3), axis=0)) <= 13 * 13


def test_near_explains_the_distance_to_an_indexed_image(server: ThreadServer, explainer: Explainer) -> None:
    stored = server.state.index().vectors(["picture-1.jpg"])["picture-1.jpg"].astype(np.float32)
    found = explanation(server, jpeg(3), near="picture-1.jpg")
    assert (found["class"], found["index"], found["near"]) == (None, None, "picture-1.jpg")
    np.testing.assert_allclose(found["grid"], grid_of(explainer, jpeg(3), Target(near=stored)), atol=1e-5)
    [result] = server.client.post("/v1/search", content=jpeg(3), headers=JPEG).json()["results"]
    distances = {near["key"]: near["distance"] for near in result["neighbours"]}
    assert found["distance"] == pytest.approx(distances["picture-1.jpg"], rel=1e-3)
    assert explain(server, jpeg(3), near="picture-1.jpg").headers["content-type"] == "image/png"


def test_an_image_has_nothing_that_brings_it_nearer_to_itself(server: ThreadServer) -> None:
    found = explanation(server, jpeg(1), near="picture-1.jpg")
    assert not np.any(found["grid"])
    assert 0 <= found["distance"] < 0.1


def test_classify_explains_the_best_class_of_each_image(server: ThreadServer) -> None:
    parts = [("file", (f"{seed}.jpg", jpeg(seed))) for seed in range(3)]
    plain, explained = (
        server.client.post("/v1/classify", files=parts, params=parameters).json()["results"]
        for parameters in ({}, {"explain": "true"})
    )
    assert all("explanation" not in result for result in plain)
    for seed, (result, other) in enumerate(zip(explained, plain, strict=True)):
        for mine, theirs in zip(result["predictions"], other["predictions"], strict=True):
            assert mine["label"] == theirs["label"]
            assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
        found = result["explanation"]
        assert (found["class"], found["index"]) == (
            result["predictions"][0]["label"],
            result["predictions"][0]["index"],
        )
        np.testing.assert_allclose(found["grid"], explanation(server, jpeg(seed))["grid"], atol=1e-5)
        scheme, _, data = found["image"].partition(",")
        assert scheme == "data:image/png;base64"
        drawn, alone = (picture_of(png) for png in (base64.b64decode(data), explain(server, jpeg(seed)).content))
        assert np.abs(drawn - alone).max() <= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Poly, defect", "'poly, defective'"),
        ("sound", "'poly, sound'"),
        ("3", "its index from 0 to 2"),
        ("-1", "its index from 0 to 2"),
        ("", "its index from 0 to 2"),
        ("x" * 900, "GET /v1/models/small:1 lists the names"),
        ("²", "its index from 0 to 2"),
    ],
)
def test_a_class_that_does_not_exist_is_refused_with_similar_names(server: ThreadServer, name: str, words: str) -> None:
    detail = refused(explain(server, jpeg(), **{"class": name}), 422, "class-not-found")
    assert "small:1 has no class" in detail
    assert words in detail


def test_invalid_requests_are_refused_in_words(server: ThreadServer) -> None:
    assert "one crop" in refused(classify(server, jpeg(), explain="true", views=10), 422, "parameter")
    assert "'nothing'" in refused(explain(server, jpeg(), near="nothing"), 404, "no-such-image")
    both = explain(server, jpeg(), near="picture-1.jpg", **{"class": "1"})
    assert "one or the other" in refused(both, 422, "parameter")
    refused(explain(server, jpeg(), format="gif"), 422, "parameter")
    assert "views is not a parameter" in refused(explain(server, jpeg(), views=10), 422, "parameter")
    refused(explain(server, b"%PDF-1.7 and so on"), 415, "image-format")
    refused(explain(server, b"text"), 400, "image-unreadable")
    refused(explain(server, b""), 400, "image-unreadable")
    parts = [("file", (f"{seed}.jpg", jpeg(seed))) for seed in range(2)]
    many = server.client.post("/v1/explain", files=parts)
    assert "at most 1 image." in refused(many, 413, "too-many-images")
    refused(explain(server, jpeg(), model="absent:1"), 404, "no-such-model")


def classify(server: ThreadServer, data: bytes, **parameters: Any) -> httpx.Response:
    return server.client.post("/v1/classify", content=data, headers=JPEG, params=parameters)


def test_a_version_of_an_earlier_release_is_refused_with_the_command_that_helps(server: ThreadServer) -> None:
    for answer in (explain(server, jpeg(), model="old:1"), classify(server, jpeg(), model="old:1", explain="true")):
        assert "fc7 models add-explanations old:1" in refused(answer, 409, "not-explainable")
    # It has the same weights, so its vectors can be searched, but it cannot explain the distance.
    near = explain(server, jpeg(), model="old:1", near="picture-1.jpg")
    assert "fc7 models add-explanations old:1" in refused(near, 409, "not-explainable")


def test_explained_and_other_images_share_a_batch(server: ThreadServer) -> None:
    expected = [explanation(server, jpeg(seed))["grid"] for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        explained = [pool.submit(explanation, server, jpeg(number % 4)) for number in range(16)]
        others = [pool.submit(classify, server, jpeg(number % 4), views=10) for number in range(8)]
        for number, answer in enumerate(explained):
            np.testing.assert_allclose(answer.result()["grid"], expected[number % 4], atol=1e-4)
        assert all(answer.result().status_code == 200 for answer in others)


def test_a_full_queue_refuses_explanations_too(tmp_path: Path) -> None:
    publish_explainable_model(tmp_path / "home")
    with thread_server(tmp_path / "home", queue_size=1, max_images=1) as small:
        with small.state.serving().batcher.admit(1):
            refused(explain(small, jpeg()), 503, "queue-full")
        assert explain(small, jpeg()).status_code == 200


def test_without_memory_for_the_graph_explanations_are_refused_and_answers_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_explainable_model(tmp_path / "home")
    with thread_server(tmp_path / "home") as server, monkeypatch.context() as patch:
        assert server.state.serving().explanations.loaded is None, "loaded at the first use"
        patch.setattr(explaining, "available", lambda: 1_000_000)
        assert "explains the answers of small:1" in refused(explain(server, jpeg()), 503, "memory-short")
        assert classify(server, jpeg()).status_code == 200
        with pytest.raises(MemoryShortError):
            server.state.serving().explanations.load()
        patch.undo()
        assert explain(server, jpeg()).status_code == 200
