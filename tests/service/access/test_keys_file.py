"""The file of API keys: its content, its permissions, concurrent changes, and files that are not valid."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.api_keys import Scope
from service.keys_file import KeysFileError, create_key, digest_of, read_keys, revoke_key
from service.rate_limit import Rate

VALID = {"name": "a", "scope": "read", "sha256": "0" * 64, "created": "2026-01-31T12:00:00Z"}


def test_the_file_has_the_hash_and_not_the_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    expires = datetime(2030, 1, 2, tzinfo=UTC)
    _, secret = create_key(path, "camera", Scope.WRITE, expires=expires, rate=Rate(100, "minute"))
    document = json.loads(path.read_text())
    created = document["keys"][0].pop("created")
    assert document == {
        "format": 1,
        "keys": [
            {
                "name": "camera",
                "scope": "write",
                "sha256": digest_of(secret),
                "expires": "2030-01-02T00:00:00Z",
                "rate": "100/minute",
            }
        ],
    }
    assert abs((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()) < 60
    assert secret not in path.read_text()
    assert secret.startswith("fc7_")
    assert len(secret) == len("fc7_") + 43, "256 bits in base64"


def test_the_file_is_readable_by_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    before = os.umask(0)
    try:
        create_key(path, "a", Scope.READ)
        path.chmod(0o666)
        create_key(path, "b", Scope.READ)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_concurrent_changes_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    names = [f"key-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        secrets = {secret for _, secret in pool.map(lambda name: create_key(path, name, Scope.READ), names)}
        assert len(secrets) == len(names)
        list(pool.map(lambda name: revoke_key(path, name), names[::2]))
    assert sorted(key.name for key in read_keys(path)) == sorted(names[1::2])


def test_a_name_is_used_once_and_can_be_used_again_after_it_was_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, first = create_key(path, "a", Scope.READ)
    with pytest.raises(KeysFileError, match="has a key a"):
        create_key(path, "a", Scope.ADMIN)
    assert revoke_key(path, "a").sha256 == digest_of(first)
    assert read_keys(path) == ()
    with pytest.raises(KeysFileError, match="has no key a"):
        revoke_key(path, "a")
    assert create_key(path, "a", Scope.READ)[1] != first


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "JSON"),
        ('{"format": 1, "keys": [', "JSON"),
        ("[]", "is not valid"),
        ({"keys": []}, "format"),
        ({"format": 2, "keys": [], "new": 1}, "has format 2, and this version reads 1"),
        ({"format": 1, "keys": [VALID | {"scope": "root"}]}, "keys.0.scope"),
        ({"format": 1, "keys": [VALID | {"sha256": "F" * 64}]}, "keys.0.sha256"),
        ({"format": 1, "keys": [VALID | {"sha256": "0" * 63}]}, "keys.0.sha256"),
        ({"format": 1, "keys": [VALID | {"name": "a b"}]}, "keys.0.name"),
        ({"format": 1, "keys": [VALID | {"name": "admin"}]}, "keys.0.name"),
        ({"format": 1, "keys": [VALID | {"rate": "1/year"}]}, "keys.0.rate"),
        ({"format": 1, "keys": [VALID | {"expires": "2030-01-01T00:00:00"}]}, "keys.0.expires"),
        ({"format": 1, "keys": [VALID | {"expire": None}]}, "keys.0.expire"),
        ({"format": 1, "keys": [VALID, VALID | {"sha256": "1" * 64}]}, "two keys with the same name"),
        ({"format": 1, "keys": [VALID, VALID | {"name": "b"}]}, "two keys with the same sha256"),
    ],
    ids=lambda value: None if isinstance(value, dict | list) else str(value)[:30],
)
def test_a_file_that_is_not_valid_is_rejected_and_not_replaced(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "keys.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    with pytest.raises(KeysFileError, match=words) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)
    assert "0000" not in str(caught.value), "no hash is printed"
    with pytest.raises(KeysFileError):
        create_key(path, "c", Scope.READ)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeysFileError, match="cannot be written"):
        create_key(tmp_path / "file" / "keys.json", "a", Scope.READ)
