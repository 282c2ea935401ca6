"""Settings: invalid values, unknown variables, and keys that are never shown."""

from __future__ import annotations

import os

import pytest

from service.api_keys import Scope
from service.errors import SettingError
from service.settings import Settings, describe, load_settings, unknown_variables

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FC7_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FC7_MAX_BATCH", "many", "a whole number from 1 to 1024"),
        ("FC7_PORT", "99999", "a whole number from 0 to 65535"),
        ("FC7_DEVICE", "tpu", "auto, cpu, cuda or cuda:N"),
        ("FC7_ENGINE", "tensorflow", "one of auto, onnxruntime, openvino"),
        ("FC7_ARITHMETIC", "bf16", "one of auto, f32"),
        ("FC7_DEADLINE_S", "0", "a number above 0"),
        ("FC7_ALLOW_ANONYMOUS", "perhaps", "true or false"),
        ("FC7_LOG_FORMAT", "xml", "one of json, text"),
        ("FC7_THREADS", "0", "a whole number from 1"),
        ("FC7_QUEUE_SIZE", "3", "at least FC7_MAX_IMAGES"),
        ("FC7_MAX_BUFFER_BYTES", "5000", "at least FC7_MAX_BODY_BYTES"),
        ("FC7_HOST", "0.0.0.0:80", "an IP address, such as 127.0.0.1 or ::1, or a host name, without a port"),
        ("FC7_HOST", "[::1]:80", "an IP address"),
        ("FC7_HOST", "[127.0.0.1]", "an IP address"),
        ("FC7_HOST", "http://localhost", "an IP address"),
        ("FC7_HOST", "local host", "an IP address"),
        ("FC7_BIND", "0.0.0.0:80", "an IP address"),
        ("FC7_ROOT_PATH", "fc7", "a path such as /fc7"),
        ("FC7_ROOT_PATH", "/a/../b", "a path such as /fc7"),
        ("FC7_ROOT_PATH", "/a?b", "a path such as /fc7"),
        ("FC7_ALLOWED_HOSTS", "https://example.org", "host names separated by commas"),
        ("FC7_ALLOWED_HOSTS", "example.org:8000", "host names separated by commas"),
        ("FC7_ALLOWED_HOSTS", "ex*mple.org", "host names separated by commas"),
        ("FC7_ALLOWED_ORIGINS", "example.org", "origins separated by commas"),
        ("FC7_ALLOWED_ORIGINS", "https://example.org/", "origins separated by commas"),
        ("FC7_ALLOWED_ORIGINS", "*", "a list of origins, because requests without an API key are accepted"),
    ],
)
def test_the_error_for_an_invalid_value_says_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError) as raised:
        load_settings()
    assert str(raised.value).startswith(f"{name}={value} is not valid: expected {expected}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [KEY, f"root:{KEY}", "read:short-secret", "read:has space in it 0123"])
def test_an_invalid_key_is_rejected_without_being_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FC7_API_KEYS", value)
    with pytest.raises(SettingError, match="FC7_API_KEYS") as raised:
        load_settings()
    assert value.rpartition(":")[2] not in str(raised.value)


def test_keys_are_parsed_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FC7_API_KEYS", f"read:{KEY}, admin:{KEY}admin,")
    settings = load_settings()
    assert [(key.scope, key.secret.get_secret_value()) for key in settings.api_keys] == [
        (Scope.READ, KEY),
        (Scope.ADMIN, f"{KEY}admin"),
    ]
    lines = {line.variable: line.value for line in describe(settings)}
    assert lines["FC7_API_KEYS"] == "read:********, admin:********"
    assert KEY not in repr(settings) + str(list(describe(settings)))


def test_the_source_of_each_value_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FC7_MAX_BATCH", "4")
    monkeypatch.setenv("FC7_PORT", "1")
    monkeypatch.setenv("FC7_HOST", "")  # an empty variable counts as unset, because Compose files pass empty ones
    settings = load_settings(port=9000, host=None)
    lines = {line.variable: (line.value, line.source) for line in describe(settings, frozenset(["port"]))}
    assert lines["FC7_MAX_BATCH"] == ("4", "environment")
    assert lines["FC7_PORT"] == ("9000", "command line")
    assert lines["FC7_HOST"] == ("127.0.0.1", "default")


def test_an_unknown_variable_is_reported_with_the_closest_name() -> None:
    [warning] = unknown_variables({"FC7_MAXBATCH": "4", "FC7_PORT": "1", "PATH": ""})
    assert warning == "FC7_MAXBATCH is set, but fc7 has no such setting. Did you mean FC7_MAX_BATCH?"


def test_addresses_and_lists_are_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("FC7_HOST", "[::1]"),
        ("FC7_BIND", "Localhost."),
        ("FC7_ROOT_PATH", "/fc7/"),
        ("FC7_ALLOWED_HOSTS", " Example.org,,*.LAN "),
        ("FC7_ALLOWED_ORIGINS", "https://App.example.org:8443, chrome-extension://abc"),
    ):
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.host, settings.bind, settings.root_path) == ("::1", "localhost", "/fc7")
    assert settings.allowed_hosts == ("example.org", "*.lan")
    assert settings.allowed_origins == ("https://app.example.org:8443", "chrome-extension://abc")
    lines = {line.variable: line.value for line in describe(settings)}
    assert lines["FC7_ALLOWED_HOSTS"] == "example.org,*.lan"
    monkeypatch.setenv("FC7_API_KEYS", f"admin:{KEY}")
    monkeypatch.setenv("FC7_ALLOWED_ORIGINS", "*")
    assert load_settings(root_path="/").root_path == ""


def test_every_setting_is_described() -> None:
    for line in describe(Settings()):
        assert line.description, line.variable
