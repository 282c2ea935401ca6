"""What browsers need to use the API from pages of other origins: preflights, exposed headers, no credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import pictures
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home: Path = tmp_path_factory.mktemp("cors") / "home"
    publish_tiny_model(home)
    with thread_server(home, allowed_origins=(PAGE,), api_keys="read:0123456789abcdef") as server:
        yield server.client


def preflight(client: httpx.Client, path: str, method: str, headers: str, origin: str = PAGE) -> httpx.Response:
    names = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return client.options(path, headers=names | {"Access-Control-Request-Private-Network": "true"})


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/v1/search", "POST", "content-type,x-api-key"),
        ("/v1/embeddings", "POST", "authorization,content-type,x-stainless-lang,x-stainless-retry-count"),
        ("/v1/images/a", "PUT", "authorization,traceparent,x-request-id"),
        ("/v1/images/a", "PATCH", "content-type"),
        ("/v1/index/duplicates", "DELETE", "x-api-key"),
    ],
)
def test_a_preflight_needs_no_key_and_allows_every_header(
    client: httpx.Client, path: str, method: str, headers: str
) -> None:
    answer = preflight(client, path, method, headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert method in answer.headers["access-control-allow-methods"]
    assert set(headers.split(",")) <= {
        name.strip() for name in answer.headers["access-control-allow-headers"].split(",")
    }
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in answer.headers, "keys are headers; cookies are not used"


def test_other_origins_are_not_allowed(client: httpx.Client) -> None:
    answer = preflight(client, "/v1/search", "POST", "content-type", "https://evil.example.org")
    assert answer.status_code == 400
    assert answer.headers.get("access-control-allow-origin") is None


def test_pages_can_read_answers_errors_and_headers(client: httpx.Client) -> None:
    key = {"X-API-Key": "0123456789abcdef"}
    found = client.post("/v1/classify", content=pictures.jpeg(), headers=key | {"Origin": PAGE})
    denied = client.post("/v1/classify", content=pictures.jpeg(), headers={"Origin": PAGE})
    broken = client.post("/v1/classify", content=b"x", headers=key | {"Origin": PAGE})
    assert [answer.status_code for answer in (found, denied, broken)] == [200, 401, 400]
    for answer in (found, denied, broken):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"Retry-After", "ETag", "Location", "X-Request-ID", "Server-Timing"} <= exposed
