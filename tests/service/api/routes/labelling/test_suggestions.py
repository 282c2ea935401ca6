"""`GET /v1/images/suggestions`, and the image whose key is `suggestions`, over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("suggestions") / "home"
    publish_tiny_model(home)
    with thread_server(home) as running:
        for seed in range(8):
            running.client.put(f"/v1/images/i{seed}.jpg", content=pictures.jpeg(seed), headers=JPEG)
        for seed, label in ((0, "cat"), (1, "dog")):
            running.client.patch(f"/v1/images/i{seed}.jpg", json={"metadata": {"label": label, "year": 2020 + seed}})
        running.client.patch("/v1/images/i2.jpg", json={"metadata": {"year": 2022}})
        yield running


def suggest(client: httpx.Client, query: str = "", status: int = 200) -> Any:
    response = client.get(f"/v1/images/suggestions{query}")
    assert response.status_code == status, response.text
    return response.json()


def test_unlabeled_images_are_suggested_with_their_reasons(server: ThreadServer) -> None:
    answer = suggest(server.client, "?limit=4")
    assert answer["model"] == {"name": "tiny", "version": 1}
    assert (answer["field"], answer["unlabeled"], answer["labeled"], answer["compared"]) == ("label", 6, 2, 6)
    assert answer["note"] == ""
    assert len(answer["suggestions"]) == 4
    for each in answer["suggestions"]:
        assert each["key"] in {f"i{seed}.jpg" for seed in range(2, 8)}
        assert each["reason"] in ("uncertain", "different", "representative")
        assert each["text"].endswith(".")
        assert server.client.get(each["thumbnail"]).status_code == 200
    everything = suggest(server.client, "?limit=1000")["suggestions"]
    assert len({each["key"] for each in everything}) == 6
    assert everything[:4] == answer["suggestions"]


def test_filters_fields_and_invalid_parameters(server: ThreadServer) -> None:
    assert [each["key"] for each in suggest(server.client, "?where=year>=2021")["suggestions"]] == ["i2.jpg"]
    assert suggest(server.client, "?field=camera.model")["labeled"] == 0
    assert suggest(server.client, "?field=year")["labeled"] == 3
    for query in ("?limit=0", "?limit=1001", "?k=5", "?field=a%20b", "?where=nothing:1", "?field="):
        assert suggest(server.client, query, 422)["status"] == 422
    assert server.client.head("/v1/images/suggestions").status_code == 200
    assert "PUT" in server.client.options("/v1/images/suggestions").headers["Allow"]


def test_an_image_with_the_key_suggestions_stays_reachable(server: ThreadServer) -> None:
    client = server.client
    put = client.put("/v1/images/suggestions", content=pictures.jpeg(30), headers=JPEG)
    assert put.status_code == 201
    assert client.patch("/v1/images/suggestions", json={"metadata": {"label": "x"}}).status_code == 200
    assert client.get("/v1/images/suggestions/thumbnail").status_code == 200
    assert client.get("/v1/images/suggestions/similar").status_code == 200
    [listed] = client.get("/v1/images?prefix=suggestions").json()["images"]
    assert listed["key"] == "suggestions"
    assert client.get(listed["thumbnail"]).status_code == 200
    # httpx would decode the letter of the path, so the request is written by hand.
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        path = put.headers["Location"]
        assert path == "/v1/images/%73uggestions"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b'"key":"suggestions"' in received
    assert client.delete("/v1/images/suggestions").status_code == 204


def test_an_empty_index_has_no_suggestions(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path / "home")
    with thread_server(tmp_path / "home") as empty:
        assert suggest(empty.client)["suggestions"] == []
        answer = empty.client.get("/v1/index/map").json()
        assert (answer["keys"], answer["images"], answer["next_cursor"]) == ([], 0, None)
