"""Adding, getting, listing, searching and deleting images over real HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from tests.support import pictures
from tests.support.server import thread_server

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def client(home: Path) -> Iterator[httpx.Client]:
    with thread_server(home) as server:
        yield server.client


def put(client: httpx.Client, key: str, data: bytes) -> httpx.Response:
    return client.put(f"/v1/images/{quote(key, safe='')}", content=data, headers=JPEG)


def test_put_returns_201_then_200_and_replaces_other_bytes(client: httpx.Client) -> None:
    first, second = pictures.jpeg(1), pictures.jpeg(2)
    added = put(client, "heron", first)
    assert (added.status_code, added.json()["outcome"]) == (201, "added")
    assert client.get(added.headers["location"]).json() == added.json()["image"]
    again = put(client, "heron", first)
    assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")
    assert again.json()["image"] == added.json()["image"]
    other = put(client, "heron", second)
    assert (other.status_code, other.json()["outcome"]) == (200, "replaced")
    record = client.get("/v1/images/heron").json()
    assert record["sha256"] == hashlib.sha256(second).hexdigest()
    assert (record["size"], record["width"], record["height"]) == (len(second), 320, 240)


@pytest.mark.parametrize(
    "key", ["a/b/c.jpg", "a/thumbnail", "x/similar", "thumbnail", "100%", "a%2Fb", "grüße 鷺.jpg", "?#&=+", "a//b"]
)
def test_any_percent_encoded_key_works(client: httpx.Client, key: str) -> None:
    data = pictures.jpeg(1)
    assert put(client, key, data).status_code == 201
    path = f"/v1/images/{quote(key, safe='')}"
    assert client.get(path).json()["key"] == key
    [listed] = client.get("/v1/images").json()["images"]
    assert listed["key"] == key
    thumbnail = client.get(listed["thumbnail"])
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (256, 256)
    assert client.get(f"{path}/similar").json()["results"] == [{"neighbours": []}]
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def test_slashes_in_keys_need_no_encoding(client: httpx.Client) -> None:
    assert client.put("/v1/images/birds/heron.jpg", content=pictures.jpeg(1), headers=JPEG).status_code == 201
    assert client.get("/v1/images/birds/heron.jpg").json()["key"] == "birds/heron.jpg"
    assert client.get("/v1/images/birds/heron.jpg/thumbnail").status_code == 200
    assert client.get("/v1/images/birds%2Fheron.jpg").status_code == 200


@pytest.mark.parametrize("key", ["a" * 201, "line\nbreak", "\0"])
def test_an_invalid_key_returns_422(client: httpx.Client, key: str) -> None:
    answer = put(client, key, pictures.jpeg())
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:image-key")


def test_a_key_that_is_not_utf8_returns_422(client: httpx.Client) -> None:
    for path in ("%FF", "a%FFb/thumbnail"):
        assert client.get(f"/v1/images/{path}").status_code == 422
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="\xff.jpg"\r\n\r\n' + pictures.jpeg()
    answer = client.post(
        "/v1/images", content=body + b"\r\n--b--\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 422


def test_post_uses_file_names_as_keys_and_accepts_metadata(client: httpx.Client) -> None:
    files = [("file", (f"birds/{i}.jpg", pictures.jpeg(i), "image/jpeg")) for i in range(3)]
    answer = client.post("/v1/images", files=files, data={"metadata": json.dumps({"birds/1.jpg": {"seen": "Ely"}})})
    assert answer.status_code == 201, answer.text
    assert [result["outcome"] for result in answer.json()["results"]] == ["added"] * 3
    assert [result["image"]["metadata"] for result in answer.json()["results"]] == [{}, {"seen": "Ely"}, {}]
    again = client.post("/v1/images", files=files)
    assert again.status_code == 200
    assert {result["outcome"] for result in again.json()["results"]} == {"unchanged"}
    assert client.get("/v1/images/birds/1.jpg").json()["metadata"] == {"seen": "Ely"}
    changed = client.post("/v1/images", files=files[1:2], data={"metadata": '{"birds/1.jpg": {"seen": "Wicken"}}'})
    assert changed.json()["results"][0]["image"]["metadata"] == {"seen": "Wicken"}


def test_without_a_file_name_the_key_is_the_sha256(client: httpx.Client) -> None:
    data = pictures.jpeg(5)
    answer = client.post("/v1/images", content=data, headers=JPEG)
    assert answer.json()["results"][0]["image"]["key"] == hashlib.sha256(data).hexdigest()


def test_put_accepts_metadata_with_the_file(client: httpx.Client) -> None:
    file = {"file": ("x.jpg", pictures.jpeg(1), "image/jpeg")}
    answer = client.put("/v1/images/heron", files=file, data={"metadata": '{"a": [1, null]}'})
    assert answer.status_code == 201
    assert answer.json()["image"]["metadata"] == {"a": [1, None]}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [("[1]", "list"), ("{", "not valid JSON"), ('{"other.jpg": {}}', "other.jpg"), ('{"a.jpg": 3}', "int")],
)
def test_invalid_metadata_adds_no_image(client: httpx.Client, metadata: str, words: str) -> None:
    answer = client.post(
        "/v1/images", files={"file": ("a.jpg", pictures.jpeg(), "image/jpeg")}, data={"metadata": metadata}
    )
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:metadata")
    assert words in answer.json()["detail"]
    assert client.get("/v1/images").json()["images"] == []


def test_one_invalid_image_adds_none(client: httpx.Client) -> None:
    files = [("file", ("a.jpg", pictures.jpeg(), "image/jpeg")), ("file", ("b.jpg", b"text", "image/jpeg"))]
    answer = client.post("/v1/images", files=files)
    assert (answer.status_code, answer.json()["index"]) == (400, 1)
    assert client.get("/v1/index").json()["images"] == 0


def test_two_files_with_the_same_name_are_rejected(client: httpx.Client) -> None:
    files = [("file", ("a.jpg", pictures.jpeg(seed), "image/jpeg")) for seed in (1, 2)]
    answer = client.post("/v1/images", files=files)
    assert answer.status_code == 400
    assert "a.jpg" in answer.json()["detail"]


def test_put_rejects_two_images(client: httpx.Client) -> None:
    files = [("file", ("a.jpg", pictures.jpeg(seed), "image/jpeg")) for seed in (1, 2)]
    assert client.put("/v1/images/a", files=files).status_code == 400


def test_search_returns_the_image_itself_first_and_similar_excludes_it(client: httpx.Client) -> None:
    for seed in range(8):
        assert put(client, f"scene/{seed}", pictures.jpeg(seed)).status_code == 201
    answer = client.post("/v1/search?k=3", content=pictures.jpeg(4), headers=JPEG).json()
    neighbours = answer["results"][0]["neighbours"]
    assert answer["model"] == {"name": "tiny", "version": 1}
    assert answer["mode"] == "exact"
    assert neighbours[0]["key"] == "scene/4"
    assert neighbours[0]["distance"] == pytest.approx(0, abs=1e-3)
    assert neighbours[0]["thumbnail"] == "/v1/images/scene%2F4/thumbnail"
    distances = [neighbour["distance"] for neighbour in neighbours]
    assert distances == sorted(distances)
    similar = client.get("/v1/images/scene/4/similar?k=2").json()["results"][0]["neighbours"]
    assert [neighbour["key"] for neighbour in similar] == [neighbour["key"] for neighbour in neighbours[1:]]
    assert [neighbour["distance"] for neighbour in similar] == pytest.approx(distances[1:], abs=1e-2)
    assert client.delete("/v1/images/scene/4").status_code == 204
    left = client.post("/v1/search?k=8", content=pictures.jpeg(4), headers=JPEG).json()["results"][0]["neighbours"]
    assert "scene/4" not in [neighbour["key"] for neighbour in left]
    assert len(left) == 7


def test_the_list_pages_through_all_images(client: httpx.Client) -> None:
    keys = [f"{i}.jpg" for i in range(5)]
    client.post("/v1/images", files=[("file", (key, pictures.jpeg(1, 32, 32), "image/jpeg")) for key in keys])
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/v1/images", params={"limit": 2, **cursor}).json()
        seen += [image["key"] for image in page["images"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == keys
    assert client.get("/v1/images?cursor=forged").status_code == 422
    assert client.get("/v1/images?limit=0").status_code == 422


@pytest.mark.parametrize("path", ["", "/thumbnail", "/similar"])
def test_an_unknown_key_returns_404(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/v1/images/nobody{path}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:fc7:problem:no-such-image")
    assert client.delete("/v1/images/nobody").status_code == 404


def test_thumbnails_can_be_disabled(home: Path) -> None:
    with thread_server(home, keep_pictures=False) as server:
        assert put(server.client, "a", pictures.jpeg()).json()["image"]["thumbnail"] is None
        assert server.client.get("/v1/images/a/thumbnail").status_code == 404


def test_a_large_index_uses_fast_search_unless_another_mode_is_requested(home: Path) -> None:
    with thread_server(home, fast_from=5) as server:
        client = server.client
        for seed in range(8):
            assert put(client, f"{seed}", pictures.jpeg(seed)).status_code == 201
        end = time.monotonic() + 60
        while client.get("/v1/index").json()["mode"] != "fast":
            assert time.monotonic() < end
            time.sleep(0.05)
        answers = {}
        for mode in ("", "&mode=fast", "&mode=exact"):
            found = client.post(f"/v1/search?k=3{mode}", content=pictures.jpeg(4), headers=JPEG).json()
            answers[mode] = found["mode"], [near["key"] for near in found["results"][0]["neighbours"]]
        assert [mode for mode, _ in answers.values()] == ["fast", "fast", "exact"]
        assert answers[""][1] == answers["&mode=exact"][1]
        assert answers[""][1][0] == "4"
        assert client.get("/v1/images/4/similar?mode=exact").json()["mode"] == "exact"
        assert client.get("/v1/images/4/similar").json()["mode"] == "fast"
        for path in ("/v1/images/4/similar?mode=codes", "/v1/images/4/similar?mode=near"):
            rejected = client.get(path)
            assert rejected.status_code == (409 if "codes" in path else 422)
        assert "mode" in rejected.json()["detail"]
