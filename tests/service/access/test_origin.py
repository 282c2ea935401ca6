"""Which hosts and which web pages are accepted, over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

KEY = "read-0123456789abcdef"
EVIL = "http://evil.test"
APP = "https://app.example.org"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    publish_tiny_model(folder / "plain")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ThreadServer]:
    with thread_server(folder / "plain") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ThreadServer) -> httpx.Client:
    return server.client


@pytest.fixture(scope="module")
def configured(folder: Path) -> Iterator[httpx.Client]:
    """A server without keys, with allowed hosts and origins."""
    with thread_server(
        folder / "configured", allowed_hosts="fc7.example.org, *.lan", allowed_origins=f"{APP}, {EVIL}"
    ) as server:
        yield server.client


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[httpx.Client]:
    """A server with a key, which everyone may read."""
    with thread_server(folder / "keyed", api_keys=f"write:{KEY}", allow_anonymous=True) as server:
        yield server.client


def send_raw(server: ThreadServer, head: str) -> tuple[int, str]:
    """Send a request without a body; return the status and the body of the response."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "app.localhost:1",
        "10.1.2.3",
        "127.0.0.1:80",
        "[::1]:8000",
        "[fe80::1]",
    ],
)
def test_loopback_names_and_ip_addresses_are_accepted(client: httpx.Client, host: str) -> None:
    assert client.get("/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["rebound.test", "rebound.test:8000", "127.0.0.1.rebound.test", "notlocalhost", "localhost.rebound.test"]
)
def test_other_names_are_rejected_and_the_error_names_the_setting(client: httpx.Client, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/readyz"), ("PUT", "/v1/images/a"), ("OPTIONS", "/v1/images")):
        answer = client.request(method, path, headers={"Host": host})
        assert answer.status_code == 421
        assert "FC7_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize(
    "head",
    [
        "GET /livez HTTP/1.1",
        "GET /livez HTTP/1.1\r\nHost:",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: rebound.test",
        "GET /livez HTTP/1.1\r\nHost: localhost@rebound.test",
        "GET /livez HTTP/1.1\r\nHost: localhost/x",
        "GET /livez HTTP/1.1\r\nHost: localhost:port",
        "GET /livez HTTP/1.1\r\nHost: [::1",
        "GET /livez HTTP/1.1\r\nHost: [1:2]",
        "GET /livez HTTP/1.1\r\nHost: l\xf6calhost",
        "GET http://user@localhost/livez HTTP/1.1\r\nHost: localhost",
    ],
)
def test_a_request_without_one_valid_host_is_rejected(server: ThreadServer, head: str) -> None:
    status, text = send_raw(server, head)
    assert (status, "Send exactly one" in text) == (400, True)


def test_the_host_of_an_absolute_target_replaces_the_header(server: ThreadServer) -> None:
    assert send_raw(server, "GET http://rebound.test/livez HTTP/1.1\r\nHost: localhost")[0] == 421
    assert send_raw(server, "GET http://localhost/livez HTTP/1.1\r\nHost: rebound.test")[0] == 200
    assert send_raw(server, "OPTIONS * HTTP/1.1\r\nHost: localhost")[0] == 204


def test_http_1_0_needs_no_host_but_the_one_it_sends_is_checked(server: ThreadServer) -> None:
    assert send_raw(server, "GET /livez HTTP/1.0")[0] == 200
    assert send_raw(server, "GET /livez HTTP/1.0\r\nHost: rebound.test")[0] == 421


def test_allowed_hosts_may_be_names_and_wildcards(configured: httpx.Client) -> None:
    for host, status in (
        ("fc7.example.org", 200),
        ("FC7.example.org:8443", 200),
        ("a.b.lan", 200),
        ("localhost", 200),
        ("example.org", 421),
        ("x.fc7.example.org", 421),
        ("lan", 421),
        ("evil-lan", 421),
    ):
        assert configured.get("/livez", headers={"Host": host}).status_code == status, host


def test_with_keys_any_host_is_accepted_unless_hosts_are_configured(keyed: httpx.Client, folder: Path) -> None:
    assert keyed.get("/livez", headers={"Host": "anything.test"}).status_code == 200
    with thread_server(folder / "both", api_keys=f"write:{KEY}", allowed_hosts="fc7.lan") as server:
        assert server.client.get("/livez", headers={"Host": "anything.test"}).status_code == 421
        assert server.client.get("/livez", headers={"Host": "fc7.lan"}).status_code == 200
    with thread_server(folder / "any", allowed_hosts="*") as server:
        assert server.client.get("/livez", headers={"Host": "anything.test"}).status_code == 200


CROSS_ORIGIN: list[dict[str, str]] = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1.evil.test"},
    {"Origin": "garbage"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    {"Referer": f"{EVIL}/page"},
    {"Referer": "about:blank"},
    {"Origin": EVIL, "X-Forwarded-Host": "evil.test"},
    {"Origin": EVIL, "Authorization": "Basic eDp5"},
    {"Origin": EVIL, "X-API-Key": KEY},  # the server has no keys, so this is none
]


@pytest.mark.parametrize("headers", CROSS_ORIGIN, ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/images/a"),
        ("POST", "/v1/images"),
        ("DELETE", "/v1/images/a"),
        ("PATCH", "/v1/images/a"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/models/tiny/1/activate"),
        ("POST", "/v1/models/rollback"),
        ("POST", "/v1/index/snapshots"),
        ("POST", "/v1/classify"),
        ("POST", "/v1/search"),
        ("POST", "/v2/models/tiny/infer"),
    ],
)
def test_pages_of_other_origins_can_send_nothing(
    client: httpx.Client, headers: dict[str, str], method: str, path: str
) -> None:
    answer = client.request(method, path, headers=headers, content=pictures.jpeg(1, 32, 32))
    assert answer.status_code == 403
    assert "FC7_ALLOWED_ORIGINS" in answer.text


def same_origin(client: httpx.Client) -> list[dict[str, str]]:
    port = client.base_url.port
    return [
        {},
        {"Origin": f"http://127.0.0.1:{port}"},
        {"Origin": f"http://localhost:{port}", "Host": f"LOCALHOST:{port}"},
        {"Origin": "https://localhost", "Host": "localhost"},  # behind a proxy that terminates TLS
        {"Origin": "https://localhost", "Host": "localhost:443"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://a.test"},  # behind a proxy that changes Host
        {"Referer": f"http://127.0.0.1:{port}/"},
    ]


def test_the_page_of_the_server_and_other_clients_can_write(client: httpx.Client) -> None:
    for headers in same_origin(client):
        answer = client.put("/v1/images/a", headers=headers, content=pictures.jpeg(1, 32, 32))
        assert answer.status_code in (200, 201), headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Referer": f"{EVIL}/page"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Origin": EVIL}, 403),
    ],
    ids=str,
)
def test_links_from_other_sites_work_and_embedding_does_not(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    for path in ("/", "/v1/models", "/v1/index"):
        assert client.get(path, headers=headers).status_code == status


def test_allowed_origins_get_cors_headers(configured: httpx.Client, client: httpx.Client) -> None:
    preflight = {"Origin": APP, "Access-Control-Request-Method": "DELETE"}
    answer = configured.options("/v1/images/a", headers=preflight | {"Access-Control-Request-Headers": "x-api-key"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    answer = configured.put("/v1/images/a", headers={"Origin": APP, "Sec-Fetch-Site": "cross-site"}, content=b"x")
    assert answer.status_code == 503, "there is no model; the origin is allowed"
    assert answer.headers["access-control-allow-origin"] == APP
    assert "Origin" in answer.headers["vary"]
    other = {"Origin": "https://other.example.org"}
    assert configured.put("/v1/images/a", headers=other, content=b"x").status_code == 403
    refused = client.options("/v1/images/a", headers=preflight)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


def test_with_keys_pages_are_refused_only_without_a_key(keyed: httpx.Client) -> None:
    evil: dict[str, Any] = {"Origin": EVIL}
    for no_key in ({}, {"Authorization": "Basic eDp5"}):
        assert keyed.post("/v1/search", headers=evil | no_key, content=b"x").status_code == 403
    for key in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        assert keyed.put("/v1/images/a", headers=evil | key, content=b"x").status_code == 503, "there is no model"


def test_every_response_forbids_embedding(client: httpx.Client) -> None:
    client.put("/v1/images/a", content=pictures.jpeg(1, 32, 32))
    for path in ("/", "/v1/images/a/thumbnail", "/v1/images", "/nothing", "/web/app.js"):
        answer = client.get(path)
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
