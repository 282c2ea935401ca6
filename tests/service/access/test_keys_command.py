"""`fc7 keys new|list|revoke`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.keys_file import digest_of, read_keys
from tests.service.cli.helpers import call, invoke


def test_the_key_alone_is_on_standard_output_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    done = call("keys", "new", "camera", "--scope", "write", "--rate", "100/minute", FC7_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    key = done.stdout.removesuffix("\n")
    [stored] = read_keys(tmp_path / "keys.json")
    assert stored.sha256 == digest_of(key)
    assert (stored.name, stored.scope, stored.rate, stored.expires) == ("camera", "write", "100/minute", None)
    assert key not in done.stderr + (tmp_path / "keys.json").read_text()
    assert "only time" in done.stderr
    assert "Every request needs a key from now on" in done.stderr
    assert "Next: " in done.stderr


@pytest.mark.parametrize(
    ("when", "days"), [("12h", 0.5), ("90d", 90), ("4w", 28), ("2999-01-31", None), ("2999-01-31T10:00+02:00", None)]
)
def test_a_key_expires_after_a_time_or_at_a_date(tmp_path: Path, when: str, days: float | None) -> None:
    before = datetime.now(UTC)
    done = invoke(tmp_path, "keys", "new", "a", "--expires", when, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert read_keys(tmp_path / "keys.json")[0].sha256 == digest_of(document["key"])
    expires = datetime.fromisoformat(document["expires"])
    if days is None:
        assert expires == datetime(2999, 1, 31, 8 if "T" in when else 0, tzinfo=UTC)
    else:
        assert abs(expires - before - timedelta(days=days)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a b",), "not supported"),
        (("admin",), "not read, write or admin"),
        (("a", "--scope", "root"), "'root' is not supported"),
        (("a", "--rate", "1/year"), "such as"),
        (("a", "--expires", "soon"), "12h"),
        (("a", "--expires", "2020-01-01"), "past"),
        (("a", "--expires", "999999w"), "12h"),
        (("door",), "FC7_API_KEYS"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_arguments_are_explained_and_change_nothing(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = invoke(tmp_path, "keys", "new", *arguments, FC7_API_KEYS="door:read:0123456789abcdef")
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "keys.json").exists()


def test_the_list_shows_both_sources_and_no_secrets(tmp_path: Path) -> None:
    assert "fc7 keys new" in invoke(tmp_path, "keys", "list").stderr
    key = invoke(tmp_path, "keys", "new", "camera", "--expires", "1h").stdout.strip()
    environment = {"FC7_API_KEYS": "door:admin:0123456789abcdef,read:0123456789abcdeg"}
    shown = invoke(tmp_path, "keys", "list", **environment).stdout
    assert "camera" in shown
    assert "door" in shown
    assert "0123456789abcde" not in shown
    assert key not in shown
    listed = json.loads(invoke(tmp_path, "keys", "list", "--json", **environment).stdout)
    assert [(entry["name"], entry["scope"], entry["source"]) for entry in listed] == [
        ("camera", "read", "file"),
        ("door", "admin", "environment"),
        (None, "read", "environment"),
    ]
    assert "sha256" not in listed[0]


def test_an_expired_key_is_marked(tmp_path: Path) -> None:
    invoke(tmp_path, "keys", "new", "old", "--expires", "1h")
    path = tmp_path / "keys.json"
    document = json.loads(path.read_text())
    document["keys"][0]["expires"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    assert "(expired)" in invoke(tmp_path, "keys", "list").stdout
    finding = next(each for each in json.loads(invoke(tmp_path, "doctor", "--json").stdout) if each["check"] == "keys")
    assert (finding["status"], "expired: old" in finding["detail"]) == ("warning", True)


def test_revoking_the_last_key_says_that_requests_still_need_one(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.json"
    for name in ("a", "b"):
        assert invoke(tmp_path, "keys", "new", name, FC7_KEYS_FILE=str(path)).exit_code == 0
    first = invoke(tmp_path, "keys", "revoke", "a", FC7_KEYS_FILE=str(path))
    assert (first.exit_code, "last key" in first.stderr) == (0, False)
    assert "requests still need one" in invoke(tmp_path, "keys", "revoke", "b", FC7_KEYS_FILE=str(path)).stderr
    assert call("keys", "revoke", "b", FC7_HOME=str(tmp_path), FC7_KEYS_FILE=str(path)).returncode == 1
    assert read_keys(path) == ()
