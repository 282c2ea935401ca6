"""Labels over HTTP: several images at once, classification by neighbors, and a head that is fitted and activated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.pictures import encoded
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}
COLORS = {
    **{f"red{number}": (220, 20 * number, 20) for number in range(6)},
    **{f"blue{number}": (20, 20 * number, 220) for number in range(6)},
    "other": (90, 90, 90),
}


@pytest.fixture(scope="module", params=["local", "milvus"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    folder = tmp_path_factory.mktemp("teach")
    publish_tiny_model(folder / "home")
    uri = str(folder / "index.db") if request.param == "milvus" else None
    with thread_server(folder / "home", index_uri=uri) as server:
        yield server


@pytest.fixture
def client(server: ThreadServer) -> httpx.Client:
    """Return a client of an index with six red and six blue images without labels, and one other image."""
    client, kept = server.client, []
    for image in client.get("/v1/images").json()["images"]:
        color = COLORS.get(image["key"])
        if color is not None and image["sha256"] == sha256(solid(color)).hexdigest():
            kept.append(image["key"])
        else:
            client.delete(f"/v1/images/{image['key']}")
    if kept:
        patch(client, {"keys": kept, "metadata": None}).raise_for_status()
    for key, color in COLORS.items():
        if key not in kept:
            put(client, key, color)
    return client


def solid(color: tuple[int, int, int]) -> bytes:
    return encoded(Image.new("RGB", (64, 64), color))


def put(client: httpx.Client, key: str, color: tuple[int, int, int]) -> None:
    assert client.put(f"/v1/images/{key}", content=solid(color), headers=JPEG).status_code in (200, 201)


def patch(client: httpx.Client, body: Any, **parameters: Any) -> httpx.Response:
    return client.patch("/v1/images", json=body, params=parameters)


def classify(client: httpx.Client, **parameters: Any) -> httpx.Response:
    return client.post(
        "/v1/classify", content=solid((215, 30, 25)), headers=JPEG, params={"by": "neighbours"} | parameters
    )


def teach(client: httpx.Client, field: str = "label") -> None:
    for name in ("red", "blue"):
        answer = patch(client, {"keys": [f"{name}{n}" for n in range(6)], "metadata": {field: name.title()}})
        assert answer.json() == {"matched": 6, "changed": 6}


def test_a_class_exists_once_its_images_are_labeled(client: httpx.Client) -> None:
    refused = classify(client)
    assert refused.status_code == 409
    assert refused.json()["type"] == "urn:fc7:problem:no-labels"
    teach(client)
    answer = classify(client, neighbours=8).json()
    [result] = answer["results"]
    assert result["predictions"][0]["label"] == "Red"
    assert result["predictions"][0]["index"] is None
    assert result["predictions"][0]["probability"] > 0.9
    assert sum(each["probability"] for each in result["predictions"]) == pytest.approx(1)
    assert len(result["evidence"]) == 8
    assert [each["distance"] for each in result["evidence"]] == sorted(each["distance"] for each in result["evidence"])
    assert result["evidence"][0]["thumbnail"].startswith("/v1/images/red")
    assert sum(each["weight"] for each in result["evidence"]) == pytest.approx(1)
    everything = classify(client, neighbours=1000).json()["results"][0]["evidence"]
    assert len(everything) == 12  # the image without a label does not vote
    patch(client, {"keys": ["red0"], "metadata": {"label": "cat"}})
    classes = {each["label"]: each["index"] for each in classify(client).json()["results"][0]["predictions"]}
    assert classes["cat"] == 0  # the class of the network


def test_the_network_has_no_evidence(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", content=solid((1, 2, 3)), headers=JPEG).json()
    assert "evidence" not in answer["results"][0]


def test_labels_that_look_alike_vote_together(client: httpx.Client) -> None:
    teach(client)
    patch(client, {"keys": ["red0", "red1", "red2"], "metadata": {"label": "RED "}})
    predictions = classify(client).json()["results"][0]["predictions"]
    assert [each["label"].lower().strip() for each in predictions].count("red") == 1


def test_labels_can_be_in_any_field_and_of_any_scalar_type(client: httpx.Client) -> None:
    patch(client, {"keys": ["red1", "red2"], "metadata": {"seen": {"as": 3}}})
    patch(client, {"keys": ["blue1", "blue2"], "metadata": {"seen": {"as": ["a", "b"]}}})
    [result] = classify(client, field="seen.as").json()["results"]
    assert [each["label"] for each in result["predictions"]] == ["3"]
    assert {each["key"] for each in result["evidence"]} == {"red1", "red2"}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"neighbours": 0}, 422),
        ({"neighbours": 1001}, 422),
        ({"neighbours": "x"}, 422),
        ({"k": 0}, 422),
        ({"field": "a b"}, 422),
        ({"field": "unknown"}, 409),
        ({"by": "magic"}, 422),
        ({"by": "network", "field": "label"}, 422),
        ({"model": "unknown"}, 404),
    ],
)
def test_bad_parameters_are_rejected(client: httpx.Client, parameters: dict[str, Any], status: int) -> None:
    assert classify(client, **parameters).status_code == status


@pytest.mark.parametrize(
    ("body", "parameters", "status"),
    [
        ({"metadata": {"label": "x"}}, {}, 422),
        ({"keys": ["red0"], "metadata": {"label": "x"}}, {"where": "label:Red"}, 422),
        ({"keys": ["red0", "missing"], "metadata": {"label": "x"}}, {}, 404),
        ({"keys": "red0", "metadata": {}}, {}, 400),
        ({"keys": [1], "metadata": {}}, {}, 400),
        ({"keys": ["red0"], "metadata": []}, {}, 422),
        ({"keys": ["red0"], "label": "x"}, {}, 422),
        ({"keys": ["red0"] * 1001, "metadata": {}}, {}, 400),
        ({"metadata": {"label": "x"}}, {"where": "unknown:x"}, 422),
    ],
)
def test_bad_changes_change_nothing(client: httpx.Client, body: Any, parameters: Any, status: int) -> None:
    teach(client)
    assert patch(client, body, **parameters).status_code == status
    assert client.get("/v1/images/red0").json()["metadata"] == {"label": "Red"}


def test_images_that_match_are_labeled_again(client: httpx.Client) -> None:
    teach(client)
    assert patch(client, {"metadata": {"label": "rot"}}, where="label:Red").json() == {"matched": 6, "changed": 6}
    assert patch(client, {"metadata": {"label": "rot"}}, where="label:rot").json() == {"matched": 6, "changed": 0}
    assert patch(client, {"metadata": None}, where="label:rot").json() == {"matched": 6, "changed": 6}
    assert client.get("/v1/images", params={"where": "label:Blue"}).json()["images"][0]["key"].startswith("blue")


def finished(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(200):
        if job["state"] not in ("waiting", "running"):
            break
        time.sleep(0.05)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    return job


def test_a_head_is_fitted_published_and_activated_without_embedding(client: httpx.Client) -> None:
    teach(client)
    patch(client, {"keys": ["other"], "metadata": {"label": ["a", "b"]}})
    active = client.get("/readyz").json()["model"]
    started = client.post("/v1/jobs", params={"kind": "head"})
    assert started.status_code == 202
    job = finished(client, started.json())
    assert job["state"] == "done", job
    result = job["result"]
    assert (result["classes"], result["images"], result["unusable_labels"]) == (["Blue", "Red"], 12, 1)
    assert client.get("/readyz").json()["model"] == active  # not activated by the job
    name, version = result["model"].split(":")
    activated = client.post(f"/v1/models/{name}/{version}/activate", params={"force": True}).json()
    assert activated["index_status"] == "ready"
    [prediction, _] = client.post("/v1/classify", content=solid((215, 30, 25)), headers=JPEG).json()["results"][0][
        "predictions"
    ]
    assert (prediction["label"], prediction["index"]) == ("Red", 1)
    assert classify(client).json()["results"][0]["predictions"][0] == {
        "label": "Red",
        "index": 1,
        "probability": pytest.approx(1, abs=0.2),
    }
    assert client.get("/v1/images/red0/similar").status_code == 200
    assert client.post("/v1/models/rollback").json()["index_status"] == "ready"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "no indexed image has a label there"),
        ({"Red": 6}, "All 6 labeled images are of the class 'Red'"),
        ({"Red": 6, "Blue": 3}, "'Blue' has 3 and needs 2 more"),
    ],
)
def test_a_head_that_cannot_be_fitted_says_why(client: httpx.Client, labels: dict[str, int], message: str) -> None:
    for label, count in labels.items():
        patch(client, {"keys": [f"{label.lower()}{n}" for n in range(count)], "metadata": {"label": label}})
    job = finished(client, client.post("/v1/jobs", params={"kind": "head"}, json={"field": "label"}).json())
    assert job["state"] == "failed"
    assert message in job["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"field": "a b"}, 422), ({"where": ["x"]}, 422), ({"model": "unknown"}, 404), ({"unknown": 1}, 422)],
)
def test_bad_parameters_of_a_head_are_rejected(client: httpx.Client, body: Any, status: int) -> None:
    assert client.post("/v1/jobs", params={"kind": "head"}, json=body).status_code == status
