"""`POST /v1/search` by images, vectors and examples, with distances and further answers, over real HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import pictures
from tests.support.novelty import OWN, publish_with_reference
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

MODEL = {"model": "tiny:1"}


@pytest.fixture(scope="module", params=["local", "milvus"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    folder = tmp_path_factory.mktemp("search")
    publish_with_reference(folder / "home")
    publish_tiny_model(folder / "home", "other", seed=1, activate=False)
    uri = str(folder / "index.db") if request.param == "milvus" else None
    with thread_server(folder / "home", index_uri=uri, index_timeout_s=60) as running:
        files = [("file", (f"{n}", pictures.jpeg(n, 64, 64), "image/jpeg")) for n in range(12)]
        running.client.post("/v1/images", files=files).raise_for_status()
        yield running


@pytest.fixture
def client(server: ThreadServer) -> httpx.Client:
    return server.client


def uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def jpeg(number: int) -> bytes:
    return pictures.jpeg(number, 64, 64)


def embed(client: httpx.Client, *numbers: int) -> NDArray[np.float32]:
    answer = client.post("/v1/embed?encoding_format=base64", json={"images": [uri(jpeg(n)) for n in numbers]})
    vectors = [base64.b64decode(each["embedding"]) for each in answer.raise_for_status().json()["results"]]
    return np.stack([np.frombuffer(each, "<f4") for each in vectors])


def near(answer: httpx.Response, number: int = 0) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(each["key"], each["distance"]) for each in answer.json()["results"][number]["neighbours"]]


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert words in answer.json()["detail"], answer.text


def test_images_in_json_are_those_of_the_other_forms(client: httpx.Client) -> None:
    raw = client.post("/v1/search?k=3", content=jpeg(3)).json()
    assert client.post("/v1/search?k=3", json={"image": uri(jpeg(3))}).json() == raw
    both = client.post("/v1/search?k=3", json={"images": [uri(jpeg(3)), uri(jpeg(5))]})
    assert [near(both, number)[0] for number in (0, 1)] == [("3", 0.0), ("5", 0.0)]


def test_a_search_by_vector_equals_one_by_image(client: httpx.Client) -> None:
    vectors = embed(client, 4, 7)
    expected = client.post("/v1/search?k=4&model=tiny:1", content=jpeg(4)).json()
    base64_vector = base64.b64encode(vectors[0].tobytes()).decode()
    for vector in (vectors[0].tolist(), base64_vector):
        found = client.post("/v1/search?k=4", params=MODEL | {"k": 4}, json={"vector": vector}).json()
        assert found["results"][0]["neighbours"] == expected["results"][0]["neighbours"]
        assert "novelty" not in found["results"][0], "it also depends on the picture"
        assert found["model"] == expected["model"]
    several = client.post("/v1/search", params=MODEL, json={"vectors": [vectors[1].tolist(), base64_vector]})
    assert [near(several, number)[0][0] for number in (0, 1)] == ["7", "4"]


def test_examples_are_averaged_and_their_keys_left_out(client: httpx.Client) -> None:
    stored = embed(client, *range(12)).astype(np.float16).astype(np.float64)
    means = {"positive": (stored[1] + stored[2]) / 2, "negative": stored[5]}
    for wanted, body in (
        (means["positive"], {"positive": ["1", {"key": "2"}]}),
        (2 * means["positive"] - means["negative"], {"positive": ["1", "2"], "negative": ["5"]}),
    ):
        found = near(client.post("/v1/search?k=4", json=body))
        distances = np.linalg.norm(stored - wanted.astype(np.float16), axis=1)
        order = [n for n in np.argsort(distances) if str(n) not in {"1", "2", *body.get("negative", [])}][:4]
        assert [key for key, _ in found] == [str(n) for n in order]
        assert [distance for _, distance in found] == pytest.approx(distances[order].tolist(), rel=1e-3)
    by_key = client.post("/v1/search", json={"positive": "1", "negative": ["5"]}).json()
    parts: list[tuple[str, Any]] = [("positive", (None, "1")), ("negative", (None, "5"))]
    assert client.post("/v1/search", files=parts).json() == by_key
    assert "novelty" not in by_key["results"][0]
    # Images and vectors are not left out.
    mixed = {"positive": [uri(jpeg(1)), {"image": uri(jpeg(1))}, embed(client, 1)[0].tolist()]}
    key, distance = near(client.post("/v1/search", params=MODEL, json=mixed))[0]
    assert (key, round(distance, 1)) == ("1", 0.0)
    files: list[tuple[str, Any]] = [("positive", ("a.jpg", jpeg(1))), ("positive", (None, "2"))]
    assert "2" not in dict(near(client.post("/v1/search", files=files)))


def test_max_distance_limits_every_kind_of_search(client: httpx.Client) -> None:
    distance = near(client.post("/v1/search?k=4", content=jpeg(3)))[3][1]
    assert len(near(client.post(f"/v1/search?k=12&max_distance={distance}", content=jpeg(3)))) == 4
    assert len(near(client.get(f"/v1/images/3/similar?k=12&max_distance={distance}"))) == 3
    assert near(client.post("/v1/search?max_distance=0.0001&mode=exact", content=pictures.jpeg(99))) == []
    assert near(client.get("/v1/images/3/similar?max_distance=0")) == []
    for bad in ("-1", "nan", "inf", "1e999", "", "x", "1_0"):
        refused(client.post(f"/v1/search?max_distance={bad}", content=jpeg(3)), 422, "max_distance=")


def test_include_adds_classes_and_novelty_from_the_same_run(client: httpx.Client) -> None:
    classified = client.post("/v1/classify", content=OWN).json()["results"][0]
    for query, names in {
        "": {"novelty"},
        "?include=": set(),
        "?include=classes": {"predictions"},
        "?include=classes,novelty": {"predictions", "novelty"},
        "?include=novelty&include=classes": {"predictions", "novelty"},
    }.items():
        [result] = client.post(f"/v1/search{query}", content=OWN).json()["results"]
        assert result.keys() == {"neighbours", *names}, query
        assert all(result[name] == classified[name] for name in names), query
    refused(client.post("/v1/search?include=labels", content=OWN), 422, "expected classes or novelty")
    refused(client.post("/v1/search?include=classes", json={"positive": ["1"]}), 422, "include=classes")
    vector = {"vector": embed(client, 1)[0].tolist()}
    refused(
        client.post("/v1/search?include=classes", params=MODEL | {"include": "classes"}, json=vector), 422, "include"
    )


VECTOR = [0.5] * 4096


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"negative": ["1"]}, 422, "at least one example"),
        ({"positive": [], "negative": ["1"]}, 422, "at least one example"),
        ({"positive": ["gone"]}, 404, "gone"),
        ({"positive": [""]}, 422, "is empty"),
        ({"positive": [1.5]}, 422, "a list of 1 values"),
        ({"positive": [None]}, 422, "positive[0]=null"),
        ({"positive": ["1"] * 101}, 422, "at most 100"),
        ({"positive": [{"key": "1", "image": "data:,"}]}, 422, "positive[0]=an object"),
        ({"positive": [{"image": "https://example.org/a.png"}]}, 400, "never fetches URLs"),
        ({"image": "http://localhost/a.png"}, 400, "never fetches URLs"),
        ({"positive": ["https://example.org/a.png"]}, 400, "never fetches URLs"),
        ({"image": "data:image/png;base64,"}, 400, "empty"),
        ({"image": "data:image/png;base64,aGVsbG8="}, 400, ""),
        ({"image": "data:image/png;base64,!!!"}, 400, "image is not valid base64"),
        ({"image": "data:image/png,%89PNG"}, 400, "must be a data: URI such as"),
        ({"image": "cat.png"}, 400, "starts with 'cat.png'"),
        ({"image": 5}, 400, "is a number"),
        ({"images": []}, 400, "at least one"),
        ({"images": [uri(pictures.jpeg()), "data:;base64,?"]}, 400, "images[1]"),
        ({"images": ["data:;base64,"] * 33}, 413, "at most 32"),
        ({"image": "data:;base64,", "vector": VECTOR}, 400, "exactly one of"),
        ({}, 400, "none of them"),
        ([], 400, "JSON object"),
        ({"pictures": []}, 400, "'pictures'"),
        ({"vector": VECTOR[:-1]}, 422, "a list of 4,095 values"),
        ({"vector": [*VECTOR[:-1], float("nan")]}, 422, "finite"),
        ({"vector": [*VECTOR[:-1], float("inf")]}, 422, "finite"),
        ({"vector": [*VECTOR[:-1], 10**400]}, 422, "finite"),
        ({"vector": [*VECTOR[:-1], 70000]}, 422, "65504"),
        ({"vector": [*VECTOR[:-1], True]}, 422, "not numbers"),
        ({"vector": [*VECTOR[:-1], None]}, 422, "not numbers"),
        ({"vector": [VECTOR]}, 422, "a list of 1 values"),
        ({"vector": "AAAA"}, 422, "base64 of 3 bytes"),
        ({"vector": "not base64!"}, 422, "not base64"),
        ({"vector": base64.b64encode(np.full(4096, np.nan, "<f4").tobytes()).decode()}, 422, "finite"),
        ({"vectors": [VECTOR] * 30}, 400, "more than 100,000 values"),
        ({"vectors": []}, 400, "at least one"),
        ({"positive": [[60000.0] * 4096], "negative": [[0.0] * 4096]}, 422, "finite values within"),
    ],
)
def test_a_bad_body_is_refused_in_words(client: httpx.Client, body: Any, status: int, words: str) -> None:
    content = json.dumps(body).encode()
    answer = client.post("/v1/search", params=MODEL, content=content, headers={"Content-Type": "application/json"})
    refused(answer, status, words)


def test_vectors_of_another_model_are_refused(client: httpx.Client) -> None:
    refused(client.post("/v1/search", json={"vector": VECTOR}), 422, "model=(none)")
    refused(client.post("/v1/search", json={"positive": ["1", VECTOR]}), 422, "model=(none)")
    other = client.post("/v1/search?model=other:1", json={"vector": VECTOR})
    assert (other.status_code, other.json()["type"]) == (409, "urn:fc7:problem:index-of-another-model")
    refused(client.post("/v1/search?model=unknown:1", json={"vector": VECTOR}), 404, "unknown")


def test_bad_multipart_examples_are_refused(client: httpx.Client) -> None:
    part: dict[str, Any] = {"positive": ("a.jpg", jpeg(1)), "file": ("b.jpg", jpeg(2))}
    refused(client.post("/v1/search", files=part), 400, "send one or the other")
    refused(client.post("/v1/search", files={"negative": (None, "1")}), 422, "at least one example")
    refused(client.post("/v1/search", files={"positive": (None, "x" * 5000)}), 400, "Give the part of an image")
    refused(client.post("/v1/classify", files={"positive": (None, "1")}), 400, "a part named 'positive'")


def test_facets_orders_and_duplicates_over_http(client: httpx.Client) -> None:
    client.patch("/v1/images/1", json={"metadata": {"label": "cat"}}).raise_for_status()
    found = client.get("/v1/index/fields").json()
    assert (found["images"], found["complete"]) == (12, True)
    label = {"name": "label", "type": "string", "images": 1, "distinct": 1, "minimum": None, "maximum": None}
    assert found["fields"] == [label | {"values": [{"value": "cat", "count": 1}]}]
    assert client.get("/v1/index/fields?where=label:cat&field=label").json()["images"] == 1
    for bad in ("?where=nowhere:1", "?field=a:b", "?limit=0", "?x=1"):
        assert client.get(f"/v1/index/fields{bad}").status_code == 422, bad
    names = [each["key"] for each in client.get("/v1/images?order=-key&prefix=1").json()["images"]]
    assert names == ["11", "10", "1"]
    first = client.get("/v1/images?order=random&seed=5&limit=5").json()
    refused(client.get("/v1/images?order=random&seed=6&limit=5&cursor=" + first["next_cursor"]), 422, "another")
    for bad in ("?order=size", "?seed=1", "?order=key&seed=1", "?order=random&seed=-1", "?prefix=" + "x" * 201):
        assert client.get(f"/v1/images{bad}").status_code == 422, bad
    client.put("/v1/images/copy", json={"image": uri(jpeg(1)), "metadata": {"label": "copy"}}).raise_for_status()
    [group] = client.get("/v1/index/duplicates?threshold=0.001").json()["groups"]
    assert (group["keep"]["key"], group["size"], [each["key"] for each in group["others"]]) == ("1", 2, ["copy"])
    assert client.delete("/v1/index/duplicates?threshold=0.001&where=label:copy").json() == {"deleted": 0}
    assert client.delete("/v1/index/duplicates?threshold=0.001").json() == {"deleted": 1}
    assert client.get("/v1/images/copy").status_code == 404
    assert client.delete("/v1/index/duplicates").status_code == 422
