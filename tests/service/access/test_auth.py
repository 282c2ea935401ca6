"""API keys and scopes over real HTTP, and the check of the listening address."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api.access.auth import check_binding
from service.errors import SettingError
from service.server import bind
from service.settings import Settings
from tests.support import pictures
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

READ, WRITE, ADMIN = "read-0123456789abcdef", "write-0123456789abcdef", "admin-0123456789abcdef"
KEYS = f"read:{READ},write:{WRITE},admin:{ADMIN}"
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "home"
    publish_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[httpx.Client]:
    with thread_server(home, api_keys=KEYS) as server:
        yield server.client


def calls(client: httpx.Client, headers: dict[str, str]) -> dict[str, int]:
    return {
        "read": client.post("/v1/classify", content=pictures.jpeg(), headers=headers | JPEG).status_code,
        "write": client.put("/v1/images/a", content=pictures.jpeg(), headers=headers | JPEG).status_code,
    }


@pytest.mark.parametrize(
    ("key", "read", "write"),
    [(None, 401, 401), ("wrong-0123456789abcdef", 401, 401), (READ, 200, 403), (WRITE, 200, 2), (ADMIN, 200, 2)],
)
def test_each_scope_allows_its_requests(client: httpx.Client, key: str | None, read: int, write: int) -> None:
    ways: list[dict[str, str]] = [{}] if key is None else [{"Authorization": f"Bearer {key}"}, {"X-API-Key": key}]
    for headers in ways:
        found = calls(client, headers)
        assert found["read"] == read
        assert found["write"] == write or (write == 2 and found["write"] in (200, 201))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/index", "/v1/images", "/v1/images/a", "/v1/images/a/thumbnail"])
def test_every_api_path_requires_a_key(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_health_and_page_require_no_key(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_the_key_is_checked_before_the_body_is_read(client: httpx.Client) -> None:
    assert client.post("/v1/classify", content=bytes(25_000_000), headers=JPEG).status_code == 401


def test_with_keys_and_anonymous_access_everyone_can_read(home: Path) -> None:
    with thread_server(home.parent / "other", api_keys=KEYS, allow_anonymous=True) as server:
        assert server.client.get("/v1/models").status_code == 200
        assert server.client.put("/v1/images/a", content=b"").status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "::1%lo", "localhost", "LocalHost."])
def test_loopback_requires_no_keys(host: str) -> None:
    check_binding(Settings(host=host))
    check_binding(Settings(host="0.0.0.0", bind=host))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5"])
def test_a_container_published_on_other_addresses_requires_keys(address: str) -> None:
    for host in ("0.0.0.0", "127.0.0.1"):
        with pytest.raises(SettingError, match=f"FC7_BIND={address}"):
            check_binding(Settings(host=host, bind=address))
    check_binding(Settings(host="0.0.0.0", bind=address, allow_anonymous=True))
    check_binding(Settings.model_validate({"host": "0.0.0.0", "bind": address, "api_keys": KEYS}))


@pytest.mark.parametrize("host", ["[::1]", "::1%lo", "localhost.", "127.0.0.1"])
def test_the_server_listens_on_every_form_of_an_address(host: str) -> None:
    with bind(Settings(host=host, port=0)) as listener:
        listener.listen()
        socket.create_connection(listener.getsockname()[:2], timeout=5).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_addresses_require_keys_or_anonymous_access(host: str) -> None:
    with pytest.raises(SettingError, match=f"FC7_HOST={host}"):
        check_binding(Settings(host=host))
    check_binding(Settings(host=host, allow_anonymous=True))
    check_binding(Settings.model_validate({"host": host, "api_keys": KEYS}))
