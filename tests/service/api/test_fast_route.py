"""A FastRoute answers exactly as a plain APIRoute does: each request is sent to a server of each kind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from service.api.routes.fast_route import FastRoute
from service.api_keys import ApiKey, Scope
from tests.support.pictures import jpeg
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

KEY = "a-key-of-enough-letters"
ADMITTED = {"X-API-Key": KEY}
PATHS = ("/v1/classify", "/v1/search")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ThreadServer, ThreadServer]]:
    """A server with FastRoute, and one where FastAPI's own handler answers every path."""
    homes: list[Path] = [tmp_path_factory.mktemp(name) for name in ("fast", "plain")]
    for home in homes:
        publish_tiny_model(home)
    keys = (ApiKey(Scope.READ, SecretStr(KEY)),)
    replaced: set[str] = set()

    def plain_handler(route: FastRoute) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        replaced.add(route.path)
        return APIRoute.get_route_handler(route)

    with thread_server(homes[0], api_keys=keys) as fast, pytest.MonkeyPatch.context() as patch:
        request_all(fast)
        patch.setattr(FastRoute, "get_route_handler", plain_handler)
        with thread_server(homes[1], api_keys=keys) as plain:
            request_all(plain)
            assert replaced == set(PATHS)
            yield fast, plain


def request_all(server: ThreadServer) -> None:
    """Send a request to each path: FastAPI creates the handlers of an application when they are first needed."""
    for path in PATHS:
        assert server.client.post(path).status_code == 401


def post_to_both(
    both: tuple[ThreadServer, ThreadServer], path: str, headers: dict[str, str], body: bytes
) -> httpx.Response:
    answers = [server.client.post(path, headers=headers, content=body) for server in both]
    ignored = ("x-request-id", "date", "server-timing", "content-length")
    responses = [
        (
            answer.status_code,
            answer.json(),
            {name: value for name, value in answer.headers.items() if name not in ignored},
            sorted(answer.headers),
        )
        for answer in answers
    ]
    assert responses[0] == responses[1]
    return answers[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("k=2", 200),
        ("k=9&k=2", 200),
        ("k=", 422),
        ("k=0", 422),
        ("k=1.5", 422),
        ("k=%F0%9F%A6%A4", 422),
        ("K=1", 422),
        ("views=3&k=x", 422),
        ("model=tiny:1", 200),
        ("model=" + "x" * 81, 422),
        ("where=label:cat&where=year>2000", 422),
        ("mode=slow", 422),
    ],
)
def test_query_parameters_are_treated_the_same_on_both_routes(
    both: tuple[ThreadServer, ThreadServer], path: str, query: str, status: int
) -> None:
    answer = post_to_both(both, f"{path}?{query}", ADMITTED | {"Content-Type": "image/jpeg"}, jpeg())
    assert answer.status_code == status


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "another-key-of-letters"}, 401),
        ({"Authorization": f"bearer {KEY}"}, 200),
        ({"Authorization": f"Bearer  {KEY}"}, 200),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Basic {KEY}", "X-API-Key": KEY}, 200),
        ({"Authorization": "Bearer wrong", "X-API-Key": KEY}, 401),
        (ADMITTED | {"Content-Type": "text/plain"}, 200),
        (ADMITTED | {"Content-Type": "multipart/form-data"}, 400),
    ],
)
def test_headers_are_treated_the_same_on_both_routes(
    both: tuple[ThreadServer, ThreadServer], path: str, headers: dict[str, str], status: int
) -> None:
    assert post_to_both(both, path, {"Content-Type": "image/jpeg"} | headers, jpeg()).status_code == status


@pytest.mark.parametrize("path", PATHS)
def test_errors_are_the_same_on_both_routes(both: tuple[ThreadServer, ThreadServer], path: str) -> None:
    assert post_to_both(both, path, ADMITTED, b"not an image").status_code == 400
    answers = [server.client.get(path, headers=ADMITTED) for server in both]
    assert [answer.status_code for answer in answers] == [405, 405]
    assert answers[0].json() == answers[1].json()
