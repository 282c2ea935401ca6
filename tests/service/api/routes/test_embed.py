"""`POST /v1/embed` and `/v1/embeddings`, and images as data: URIs, over real HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.image import prepare, views
from tests.support import pictures
from tests.support.server import ThreadServer

JPEG = pictures.jpeg(3, 64, 64)


def uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def test_vectors_are_those_of_the_model_in_both_encodings(shared_server: ThreadServer, client: httpx.Client) -> None:
    expected = shared_server.state.serving().runner.run(views(prepare(JPEG))).fc7[0]
    for body in ({"content": JPEG}, {"json": {"image": uri(JPEG)}}, {"files": {"file": ("a.jpg", JPEG)}}):
        answer = client.post("/v1/embed", **body).json()
        assert (answer["model"], answer["dimensions"]) == ({"name": "tiny", "version": 1}, 4096)
        np.testing.assert_allclose(np.array(answer["results"][0]["embedding"], np.float32), expected, rtol=1e-5)
    numbers = answer["results"][0]["embedding"]
    answer = client.post("/v1/embed?encoding_format=base64&model=tiny", content=JPEG).json()
    decoded = np.frombuffer(base64.b64decode(answer["results"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, np.array(numbers, np.float32))
    ten = client.post("/v1/embed?views=10", content=JPEG).json()["results"][0]["embedding"]
    assert ten != numbers
    several = client.post("/v1/embed", json={"images": [uri(pictures.jpeg(9)), uri(JPEG)]}).json()["results"]
    assert [each["embedding"] == numbers for each in several] == [False, True]
    assert client.post("/v1/embed?encoding_format=int8", content=JPEG).status_code == 422
    assert client.post("/v1/embed?model=unknown", content=JPEG).status_code == 404


def test_the_form_of_openais_api(client: httpx.Client) -> None:
    numbers = client.post("/v1/embed", content=JPEG).json()["results"][0]["embedding"]
    body = {"model": "tiny:1", "input": uri(JPEG), "user": "someone", "dimensions": 4096}
    assert client.post("/v1/embeddings", json=body, headers={"Authorization": "Bearer x"}).json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": numbers}],
        "model": "tiny:1",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    several = {"input": [uri(pictures.jpeg(9)), uri(JPEG)], "encoding_format": "base64"}
    found = client.post("/v1/embeddings", json=several).json()["data"]
    assert [each["index"] for each in found] == [0, 1]
    decoded = np.frombuffer(base64.b64decode(found[1]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, np.array(numbers, np.float32))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input": "a cat"}, 400, "not text or tokens"),
        ({"input": [1, 2, 3]}, 400, "input[0] must be a data: URI, but is a number"),
        ({"input": []}, 400, "at least one entry"),
        ({"input": None}, 400, "must be a data: URI"),
        ({"model": "tiny"}, 400, '"input"'),
        ({"input": "https://example.org/cat.jpg"}, 400, "never fetches URLs"),
        ({"input": uri(b"no image")}, 400, "image"),
        ({"input": uri(JPEG), "dimensions": 512}, 422, "dimensions=512"),
        ({"input": uri(JPEG), "encoding_format": "hex"}, 422, "encoding_format=hex"),
        ({"input": uri(JPEG), "model": "text-embedding-3-small:1"}, 404, "text-embedding-3-small"),
        ({"input": uri(JPEG), "model": 3}, 422, "model=3"),
        ({"input": uri(JPEG), "stream": True}, 400, "'stream' is not supported"),
        ({"input": [uri(JPEG)] * 33}, 413, "at most 32"),
    ],
)
def test_a_bad_request_in_openais_form_is_refused(client: httpx.Client, body: Any, status: int, words: str) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_data_uris_are_accepted_by_classify_and_put(client: httpx.Client) -> None:
    raw = client.post("/v1/classify", content=JPEG).json()
    wrapped = base64.encodebytes(JPEG).decode()
    for value in (
        uri(JPEG),
        uri(JPEG, "text/plain"),
        uri(JPEG, ""),
        uri(JPEG, "image/jpeg;charset=utf-8"),
        "DATA:image/jpeg;BASE64," + wrapped,
        uri(JPEG).rstrip("="),
    ):
        assert client.post("/v1/classify", json={"image": value}).json() == raw, value[:40]
    put = client.put("/v1/images/from json", json={"image": uri(JPEG), "metadata": {"label": "x"}})
    assert (put.status_code, put.json()["image"]["metadata"]) == (201, {"label": "x"})
    assert client.put("/v1/images/from json", content=JPEG).json()["outcome"] == "unchanged"
    client.delete("/v1/images/from json")
    for body, words in (
        ({"images": [uri(JPEG)] * 2}, "exactly one image"),
        ({"image": uri(JPEG), "metadata": []}, "metadata must be a JSON object"),
        ({"image": uri(JPEG), "images": []}, "both"),
        ({"image": uri(JPEG), "key": "x"}, "'key'"),
    ):
        answer = client.put("/v1/images/from json", json=body)
        assert (answer.status_code, words in answer.json()["detail"]) == (400, True), answer.text
    assert client.post("/v1/classify", json={"image": uri(JPEG), "metadata": {}}).status_code == 400
    svg = client.post(
        "/v1/classify", json={"image": uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")}
    )
    assert (
        svg.status_code == client.post("/v1/classify", content=b"<svg xmlns='http://www.w3.org/2000/svg'/>").status_code
    )
    json_type = {"Content-Type": "application/json"}
    assert client.post("/v1/classify", content=JPEG, headers=json_type).json() == raw, "clients often name a wrong type"
    for bad in (b"", b"{", b"[" * 200_000, b'{"image": "data:;base64,\xff"}'):
        answer = client.post("/v1/classify", content=bad, headers=json_type)
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:fc7:problem:body-malformed"), bad[:20]


def test_a_large_body_is_bounded_and_gives_its_memory_back(shared_server: ThreadServer, client: httpx.Client) -> None:
    noise = np.random.default_rng(0).bytes(3_000_000)
    answer = client.post(
        "/v1/classify", content=json.dumps({"image": uri(noise)}).encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    too_large = b'{"image": "' + b"A" * 20_000_001 + b'"}'
    answer = client.post("/v1/classify", content=too_large, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert shared_server.app.state.body_budget.held == 0
