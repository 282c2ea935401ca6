"""A FastRoute answers exactly as a plain APIRoute does: each request is sent to a server of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, request_response
from pydantic import SecretStr

from service.api.routes import ROUTERS
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
    with thread_server(homes[0], api_keys=keys) as fast, pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.ROUTERS", (plain_router(),))
        with thread_server(homes[1], api_keys=keys) as plain:
            yield fast, plain


def plain_router() -> APIRouter:
    """Return the routes of the application, with FastAPI's own handler in place of FastRoute's."""
    router, replaced = APIRouter(), set()
    for route in (route for each in ROUTERS for route in each.routes):
        plain = copy(route)
        if isinstance(plain, FastRoute):
            plain.app = request_response(APIRoute.get_route_handler(plain))
            replaced.add(plain.path)
        router.routes.append(plain)
    assert replaced == {*PATHS, "/v1/embed", "/v1/embeddings"}
    return router


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
