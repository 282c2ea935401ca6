"""The client's address behind proxies, and in the log below a path prefix that a proxy strips or keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from service.api_keys import Scope
from service.errors import SettingError
from service.keys_file import create_key
from service.settings import Settings, load_settings
from tests.support.proxy import reverse_proxy
from tests.support.server import process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.0/8", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1,10.0.0.0/8", "198.51.100.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("*", "198.51.100.1, 203.0.113.7", "198.51.100.1"),
        ("none", "203.0.113.7", "127.0.0.1"),
        ("10.0.0.0/8", "203.0.113.7", "127.0.0.1"),
        ("::1", "203.0.113.7", "127.0.0.1"),
    ],
)
def test_a_client_has_the_address_that_trusted_proxies_name(
    tmp_path: Path, trusted: str, forwarded: str, client: str
) -> None:
    def address(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.client.host if request.client else "")

    settings: dict[str, Any] = {"trusted_proxies": trusted} if trusted else {}
    with thread_server(tmp_path / "home", **settings) as server:
        server.app.router.routes.insert(0, Route("/address", address))
        assert server.client.get("/address", headers={"X-Forwarded-For": forwarded}).text == client


@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "kept"])
def test_keys_and_addresses_work_below_a_prefix(tmp_path: Path, strip: bool) -> None:
    home = tmp_path / "home"
    publish_tiny_model(home)
    key = create_key(home / "keys.json", "door", Scope.READ)[1]
    with (
        process_server(home, FC7_ROOT_PATH="/apps/fc7") as server,
        reverse_proxy(server.url, "/apps/fc7", strip=strip) as address,
        httpx.Client(headers={"X-Forwarded-For": "203.0.113.7"}) as client,
    ):
        assert client.get(f"{address}/v1/models").status_code == 401
        headers = {"X-API-Key": key, "X-Forwarded-For": "203.0.113.7"}
        assert client.get(f"{address}/v1/models", headers=headers).status_code == 200
        wait_until(lambda: any(line.get("key") == "door" for line in server.lines()))
        line = next(line for line in server.lines() if line.get("key") == "door")
        assert (line["client"], line["status"]) == ("203.0.113.7", 200)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.5/8, [::1]", ("10.0.0.0/8", "::1")),
        ("192.0.2.1/32", ("192.0.2.1",)),
        ("NONE", ()),
        ("*", ("*",)),
    ],
)
def test_addresses_and_networks_are_normalized(text: str, parsed: tuple[str, ...]) -> None:
    assert Settings.model_validate({"trusted_proxies": text}).trusted_proxies == parsed


@pytest.mark.parametrize("text", ["proxy.example.org", "10.0.0.0/33", "10.0.0.1,*", "none,10.0.0.1", "1.2.3"])
def test_other_values_are_rejected(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FC7_TRUSTED_PROXIES", text)
    with pytest.raises(SettingError, match="IP addresses or networks"):
        load_settings()
