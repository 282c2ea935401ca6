"""Novelty in the answers of `/v1/classify`, `/v1/search` and `/v2`, its threshold, and its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from model_store.image import prepare, views
from model_store.novelty.reference import load_reference
from tests.support import pictures
from tests.support.novelty import FOREIGN, OWN, TRAINING, VALIDATION, publish_with_reference
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("novelty") / "home"
    publish_with_reference(home)
    publish_tiny_model(home, "plain", seed=1, activate=False)
    with thread_server(home) as running:
        running.client.put("/v1/images/own", content=OWN).raise_for_status()
        yield running


@pytest.fixture
def client(server: ThreadServer) -> httpx.Client:
    return server.client


def novelty(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["novelty"]


def test_own_images_are_known_and_foreign_ones_unknown(server: ThreadServer, client: httpx.Client) -> None:
    reference = load_reference(server.state.serving().artifact)
    assert reference is not None
    for path in ("/v1/classify", "/v1/search"):
        own, foreign = (novelty(client.post(path, content=image)) for image in (OWN, FOREIGN))
        [expected] = reference.measure(server.state.serving().runner.run(views(prepare(OWN))).fc7, views(prepare(OWN)))
        assert own == {
            "distance": pytest.approx(expected.distance, rel=1e-4),
            "percentile": expected.percentile,
            "unknown": False,
        }
        assert (foreign["percentile"], foreign["unknown"]) == (100.0, True)
        assert foreign["distance"] > own["distance"]


def test_each_image_of_a_request_has_its_own_novelty(client: httpx.Client) -> None:
    files = [("file", ("a.jpg", image)) for image in (OWN, FOREIGN, OWN)]
    results = client.post("/v1/classify", files=files).json()["results"]
    assert [result["novelty"]["unknown"] for result in results] == [False, True, False]
    assert results[0]["novelty"]["percentile"] == results[2]["novelty"]["percentile"]


def test_ten_views_are_measured_by_their_mean(server: ThreadServer, client: httpx.Client) -> None:
    reference = load_reference(server.state.serving().artifact)
    assert reference is not None
    fc7 = server.state.serving().runner.run(views(prepare(OWN), 10)).fc7.mean(axis=0, keepdims=True)
    found = novelty(client.post("/v1/classify?views=10", content=OWN))
    assert found["distance"] == pytest.approx(float(reference.distances_of(fc7)[0]), rel=1e-4)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/search"])
def test_the_threshold_of_a_request_decides_what_is_unknown(client: httpx.Client, path: str) -> None:
    percentiles = {seed: novelty(client.post(path, content=pictures.jpeg(seed)))["percentile"] for seed in VALIDATION}
    seed, percentile = next((seed, value) for seed, value in percentiles.items() if 20 < value < 80)
    image = pictures.jpeg(seed)
    answers = {
        share: novelty(client.post(path, params={"threshold": share}, content=image))
        for share in ("0", ".1", "0.90", "9e-1", "1", "1.0", str(percentile / 100))
    }
    assert [share for share, answer in answers.items() if answer["unknown"]] == ["0", ".1"]
    assert {answer["percentile"] for answer in answers.values()} == {percentile}
    assert not novelty(client.post(f"{path}?threshold=1", content=FOREIGN))["unknown"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/search"])
@pytest.mark.parametrize("value", ["-0.1", "1.1", "95", "nan", "inf", "", "half", "0_1", " 0.5", "1e999", "٠", "true"])
def test_a_threshold_outside_0_to_1_is_rejected(client: httpx.Client, path: str, value: str) -> None:
    answer = client.post(path, params={"threshold": value}, content=OWN)
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:fc7:problem:parameter"
    assert answer.json()["parameter"] == "threshold"
    assert "expected a number from 0 to 1" in answer.json()["detail"]


def test_a_version_without_a_reference_answers_null(client: httpx.Client) -> None:
    assert novelty(client.post("/v1/classify?model=plain&threshold=0.5", content=FOREIGN)) is None


def test_stored_images_are_compared_without_novelty(client: httpx.Client) -> None:
    [result] = client.get("/v1/images/own/similar").json()["results"]
    assert list(result) == ["neighbours"]


def test_the_default_threshold_is_a_setting(tmp_path: Path) -> None:
    publish_with_reference(tmp_path / "home")
    with thread_server(tmp_path / "home", novelty_threshold=1.0) as server:
        assert not novelty(server.client.post("/v1/classify", content=FOREIGN))["unknown"]
        assert novelty(server.client.post("/v1/classify?threshold=0.99", content=FOREIGN))["unknown"]


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """Return the value of the sample with this name whose labels include the given ones."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


def test_the_metrics_count_images_by_model_class_and_novelty(client: httpx.Client) -> None:
    names = ("fc7_unknown_images_total", "fc7_novelty_percentile_count", "fc7_predicted_images_total")
    best = client.post("/v1/classify?k=1", content=FOREIGN).json()["results"][0]["predictions"][0]["label"]
    labels: list[dict[str, str]] = [{}, {}, {"class": best}]
    before = [metric(client, name, model="tiny:1", **more) for name, more in zip(names, labels, strict=True)]
    client.post("/v1/classify", content=FOREIGN).raise_for_status()
    client.post("/v1/search", content=FOREIGN).raise_for_status()
    client.post("/v1/classify?threshold=1", content=FOREIGN).raise_for_status()
    client.post("/v1/classify?model=plain", content=FOREIGN).raise_for_status()
    after = [metric(client, name, model="tiny:1", **more) for name, more in zip(names, labels, strict=True)]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 3, 3]
    assert metric(client, "fc7_predicted_images_total", model="plain:1") > 0
    assert metric(client, "fc7_novelty_percentile_count", model="plain:1") == 0


def test_the_metrics_have_the_shares_of_the_validation_images(client: httpx.Client) -> None:
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    shares = {sample.labels["le"]: sample.value for sample in families["fc7_novelty_validation_share"].samples}
    assert shares["50.0"] == pytest.approx(0.5, abs=0.05)
    assert shares["+Inf"] == 1
    buckets = {sample.labels["le"] for sample in families["fc7_novelty_percentile"].samples if "le" in sample.labels}
    assert buckets == shares.keys()
    classes = families["fc7_predicted_validation_share"].samples
    assert sum(sample.value for sample in classes) == pytest.approx(1)
    assert {sample.labels["model"] for sample in classes} == {"tiny:1"}


def infer(server: ThreadServer, outputs: list[str] | None, model: str = "tiny", **parameters: Any) -> Any:
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([OWN, FOREIGN], np.object_))
    requested = None if outputs is None else [triton.InferRequestedOutput(name) for name in outputs]
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        return client.infer(model, [tensor], outputs=requested, parameters=parameters or None)


def test_the_inference_protocol_has_novelty_as_an_output_that_can_be_asked_for(server: ThreadServer) -> None:
    metadata = server.client.get("/v2/models/tiny").json()["outputs"]
    assert {"name": "novelty", "datatype": "FP32", "shape": [-1, 3]} in metadata
    expected = [list(novelty(server.client.post("/v1/classify", content=image)).values()) for image in (OWN, FOREIGN)]
    result = infer(server, ["novelty", "probabilities"])
    np.testing.assert_allclose(result.as_numpy("novelty"), np.array(expected, np.float32), rtol=1e-4)
    assert result.as_numpy("novelty")[:, 2].tolist() == [0, 1]
    assert infer(server, ["novelty"], threshold=1.0).as_numpy("novelty")[:, 2].tolist() == [0, 0]
    assert [output["name"] for output in infer(server, None).get_response()["outputs"]] == ["probabilities", "fc7"]


def test_the_inference_protocol_refuses_novelty_without_a_reference_and_bad_thresholds(server: ThreadServer) -> None:
    outputs = server.client.get("/v2/models/plain").json()["outputs"]
    assert [output["name"] for output in outputs] == ["probabilities", "fc7"]
    with pytest.raises(InferenceServerException, match="published without a reference"):
        infer(server, ["novelty"], model="plain")
    with pytest.raises(InferenceServerException, match="number from 0 to 1"):
        infer(server, ["novelty"], threshold=1.5)
    document = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}]}
    for value in (None, True, "0.5", -1, [0.5]):
        answer = server.client.post(
            "/v2/models/tiny/infer", content=json.dumps(document | {"parameters": {"threshold": value}})
        )
        assert answer.status_code == 400
        assert "threshold" in answer.json()["error"]


def test_images_are_listed_by_novelty(tmp_path: Path) -> None:
    publish_with_reference(tmp_path)
    images = {"foreign": FOREIGN, "own": OWN, "known": pictures.jpeg(TRAINING[0]), "other/own": pictures.jpeg(301)}
    with thread_server(tmp_path) as server:
        for key, data in images.items():
            parts: dict[str, Any] = {"file": data, "metadata": (None, json.dumps({"mine": key != "foreign"}))}
            server.client.put(f"/v1/images/{key}", files=parts).raise_for_status()
        distances = {
            key: novelty(server.client.post("/v1/classify", content=data))["distance"] for key, data in images.items()
        }
        expected = sorted(images, key=lambda key: -distances[key])
        assert expected[0] == "foreign"

        def listed(**parameters: str) -> list[str]:
            keys, cursor = [], ""
            while True:
                page = server.client.get("/v1/images", params=parameters | ({"cursor": cursor} if cursor else {}))
                keys += [image["key"] for image in page.raise_for_status().json()["images"]]
                cursor = page.json()["next_cursor"]
                if cursor is None:
                    return keys

        assert listed(order="-novelty", limit="1") == expected
        assert listed(order="novelty") == expected[::-1]
        assert listed(order="-novelty", where="mine:true") == expected[1:]
        assert listed(order="-novelty", prefix="other/") == ["other/own"]
        refused = server.client.get("/v1/images?order=-novelty&seed=1")
        assert (refused.status_code, refused.json()["type"]) == (422, "urn:fc7:problem:parameter")


def test_a_version_without_a_reference_cannot_order_by_novelty(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, "plain")
    with thread_server(tmp_path) as server:
        refused = server.client.get("/v1/images?order=-novelty")
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:fc7:problem:no-novelty-reference")
        assert "plain:1 was published without a reference" in refused.json()["detail"]
