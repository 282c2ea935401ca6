"""`PATCH /v1/images`: values that are added to lists in the metadata of several images, and removed from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

METADATA: dict[str, dict[str, Any]] = {
    "none": {},
    "one": {"tags": "night", "label": "cat"},
    "list": {"tags": ["day", 1], "label": "cat"},
    "object": {"tags": {"a": 1}},
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    publish_tiny_model(tmp_path)
    with thread_server(tmp_path) as server:
        for number, (key, metadata) in enumerate(METADATA.items()):
            parts: dict[str, Any] = {"file": pictures.jpeg(number), "metadata": (None, json.dumps(metadata))}
            server.client.put(f"/v1/images/{key}", files=parts).raise_for_status()
        yield server.client


def metadata(client: httpx.Client, key: str) -> Any:
    return client.get(f"/v1/images/{key}").raise_for_status().json()["metadata"]


def test_values_are_added_to_whatever_an_image_has(client: httpx.Client) -> None:
    body = {"keys": ["none", "one", "list"], "add": {"tags": ["night", "wet"]}}
    answer = client.patch("/v1/images", json=body).raise_for_status().json()
    assert answer == {"matched": 3, "changed": 3}
    assert metadata(client, "none") == {"tags": ["night", "wet"]}
    assert metadata(client, "one") == {"tags": ["night", "wet"], "label": "cat"}
    assert metadata(client, "list") == {"tags": ["day", 1, "night", "wet"], "label": "cat"}
    assert client.patch("/v1/images", json=body).json() == {"matched": 3, "changed": 0}
    found = client.get("/v1/images?where=tags:night&where=label:cat").json()["images"]
    assert [image["key"] for image in found] == ["one", "list"]
    [tags] = [
        field for field in client.get("/v1/index/fields?field=tags").json()["fields"] if field["type"] == "string"
    ]
    assert {each["value"]: each["count"] for each in tags["values"]} == {"night": 3, "wet": 3, "day": 1}


def test_values_are_removed_and_an_empty_list_too(client: httpx.Client) -> None:
    body = {"remove": {"tags": ["night", "day", True]}}
    answer = client.patch("/v1/images?where=label:cat", json=body).raise_for_status().json()
    assert answer == {"matched": 2, "changed": 2}
    assert metadata(client, "one") == {"label": "cat"}
    assert metadata(client, "list") == {"tags": [1], "label": "cat"}  # 1 is not true


def test_all_changes_can_be_combined(client: httpx.Client) -> None:
    body = {
        "keys": ["list"],
        "metadata": {"label": "dog", "tags": ["x", "y"]},
        "remove": {"tags": ["x"]},
        "add": {"tags": ["z"]},
    }
    client.patch("/v1/images", json=body).raise_for_status()
    assert metadata(client, "list") == {"label": "dog", "tags": ["y", "z"]}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"keys": ["none", "object"], "add": {"tags": ["x"]}}, 422, "has an object with the name 'tags'"),
        ({"keys": ["none"], "add": {"tags": "x"}}, 400, "add: 'tags' must be a list of texts, numbers or booleans"),
        ({"keys": ["none"], "remove": {"tags": [None]}}, 400, "remove: 'tags' must be a list"),
        ({"keys": ["none"], "add": ["tags"]}, 400, "add must be a JSON object"),
        ({"keys": ["none"], "append": {}}, 422, "'append' was sent"),
        ({"keys": ["none"], "add": {"tags": ["x" * 17_000]}}, 422, "16 KB"),
    ],
)
def test_an_invalid_change_changes_nothing(client: httpx.Client, body: Any, status: int, words: str) -> None:
    answer = client.patch("/v1/images", json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.json()
    assert {key: metadata(client, key) for key in METADATA} == METADATA
