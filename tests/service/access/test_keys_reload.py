"""Keys that are created, changed and revoked while a server runs, and what the log says about them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.durable import write_atomic
from model_store.errors import Fc7Error
from service.api.access import keyring
from service.api.access.keyring import Keyring
from service.api_keys import Scope
from service.app import create_app
from service.errors import SettingError
from service.keys_file import KeysFileError, create_key, revoke_key
from service.observability.logs import make_logger
from service.rate_limit import Rate
from service.settings import Settings
from tests.support import pictures
from tests.support.server import ProcessServer, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    publish_tiny_model(tmp_path / "home")
    return tmp_path / "home"


def status(url: str, key: str | None = None, method: str = "GET", path: str = "/v1/models") -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.request(method, f"{url}{path}", headers=headers).status_code


def test_changes_take_effect_without_a_restart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_RELOAD_S", 0.05)
    path = home / "keys.json"
    with thread_server(home) as server:
        url = server.url
        assert status(url) == 200, "no key is required yet"
        _, first = create_key(path, "first", Scope.READ)
        wait_until(lambda: status(url) == 401)
        assert status(url, first) == 200
        other = {"Origin": "http://other.test", "Authorization": f"Bearer {first}"}
        assert httpx.get(f"{url}/v1/models", headers=other).status_code == 200, "as if the server had started with keys"
        _, second = create_key(path, "second", Scope.ADMIN)
        wait_until(lambda: status(url, second) == 200)
        revoke_key(path, "first")
        wait_until(lambda: status(url, first) == 401)
        assert status(url, second) == 200
        revoke_key(path, "second")
        wait_until(lambda: status(url, second) == 401)
        assert status(url) == 401, "the last key was revoked, which must not open the server"
        path.unlink()
        server.app.state.keyring.reload()
        assert status(url) == 401


def test_a_damaged_file_keeps_the_keys_and_a_deleted_one_revokes_them(home: Path) -> None:
    path = home / "keys.json"
    _, key = create_key(path, "camera", Scope.READ)
    content = path.read_bytes()
    often = "from service.api.access import keyring\nkeyring._RELOAD_S = 0.05"
    with process_server(home, before=often) as server:
        write_atomic(path, b"{")
        wait_until(lambda: bool(events(server, "keys not reloaded")))
        assert status(server.url, key) == 200
        assert "Correct it" in events(server, "keys not reloaded")[0]["detail"]
        path.unlink()
        wait_until(lambda: status(server.url, key) == 401)
        write_atomic(path, content)
        wait_until(lambda: status(server.url, key) == 200)
        wait_until(lambda: len(events(server, "keys reloaded")) == 2)
        assert [line["added"] for line in events(server, "keys reloaded")] == [[], ["camera"]]
        assert len(events(server, "keys not reloaded")) == 1, "an error is logged once"
        assert key not in server.log.read_text()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path, log = tmp_path / "keys.json", io.StringIO()
    create_key(path, "camera", Scope.READ)
    keyring = Keyring(Settings(home=tmp_path), make_logger("json", "info", log), lambda _: None)
    keyring.reload()
    assert log.getvalue() == ""
    write_atomic(path, b"{")
    for _ in range(3):
        keyring.reload()
    assert log.getvalue().count("keys not reloaded") == 1


def events(server: ProcessServer, event: str) -> list[dict[str, Any]]:
    return [line for line in server.lines() if line["event"] == event]


def test_a_changed_rate_applies_and_an_unchanged_one_keeps_its_count(home: Path) -> None:
    path = home / "keys.json"
    _, key = create_key(path, "slow", Scope.READ, rate=Rate(1, "hour"))
    with thread_server(home) as server:
        assert [status(server.url, key) for _ in range(2)] == [200, 429]
        create_key(path, "other", Scope.READ)
        server.app.state.keyring.reload()
        assert status(server.url, key) == 429
        path.write_text(path.read_text().replace("1/hour", "2/hour"))
        server.app.state.keyring.reload()
        assert [status(server.url, key) for _ in range(3)] == [200, 200, 429]


@pytest.fixture
def logged(home: Path) -> Iterator[tuple[ProcessServer, str]]:
    _, key = create_key(home / "keys.json", "camera", Scope.WRITE)
    with process_server(home, FC7_API_KEYS="read:0123456789abcdef,door:read:0123456789abcdeg") as server:
        yield server, key


def test_the_log_names_the_key_and_audits_changes(logged: tuple[ProcessServer, str]) -> None:
    server, key = logged
    put = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg", "X-Request-ID": "put-1"}
    httpx.put(f"{server.url}/v1/images/a", content=pictures.jpeg(), headers=put).raise_for_status()
    assert status(server.url, "0123456789abcdef") == 200
    assert status(server.url, "0123456789abcdeg") == 200
    assert status(server.url, "0123456789abcdeg", "DELETE", "/v1/images/a") == 403
    assert status(server.url, "unknown-0123456789", "DELETE", "/v1/images/a") == 401
    wait_until(lambda: len(events(server, "audit")) == 3)
    requests = [line.get("key") for line in events(server, "request") if str(line["path"]).startswith("/v1")]
    assert requests == ["camera", "FC7_API_KEYS:1", "door", "door", None]
    audited = [(line["key"], line["action"], line["path"], line["status"]) for line in events(server, "audit")]
    assert audited == [
        ("camera", "PUT /v1/images/{key:path}", "/v1/images/a", 201),
        ("door", "DELETE /v1/images/{key:path}", "/v1/images/a", 403),
        (None, "DELETE /v1/images/{key:path}", "/v1/images/a", 401),
    ]
    first = events(server, "audit")[0]
    assert (first["client"], first["request_id"]) == ("127.0.0.1", "put-1")
    assert key not in server.log.read_text()


def test_the_server_does_not_start_with_a_file_that_is_missing_or_not_valid(tmp_path: Path) -> None:
    def error_of(**settings: object) -> Fc7Error:
        with pytest.raises((SettingError, KeysFileError)) as caught:
            create_app(Settings.model_validate({"home": tmp_path, **settings}))
        return caught.value

    path = tmp_path / "secret.json"
    assert str(error_of(keys_file=path)).startswith(f"FC7_KEYS_FILE={path} is not valid: expected an existing file")
    path.write_text("{}")
    assert "is not valid" in str(error_of(keys_file=path))
    path.unlink()
    create_key(path, "door", Scope.READ)
    assert "and so has FC7_API_KEYS" in str(error_of(keys_file=path, api_keys="door:read:0123456789abcdef"))


def test_a_keys_file_outside_the_home_is_used(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "fc7-keys"
    _, key = create_key(path, "door", Scope.READ)
    path.chmod(0o444)
    with thread_server(home, keys_file=path) as server:
        assert (status(server.url), status(server.url, key)) == (401, 200)


def test_an_empty_keys_file_requires_keys(home: Path) -> None:
    create_key(home / "keys.json", "a", Scope.READ)
    revoke_key(home / "keys.json", "a")
    with thread_server(home) as server:
        assert status(server.url) == 401
        assert status(server.url, "anything-at-all-1234") == 401
