"""The file of API keys, which `fc7 keys` writes and the server reads: FC7_KEYS_FILE, or keys.json in FC7_HOME.

{"format": 1, "keys": [{"name": "camera", "scope": "write", "sha256": "...", "created": "2026-01-31T12:00:00Z",
                        "expires": null, "rate": "100/minute"}]}

A key is random with 256 bits, so its SHA-256 cannot be reversed by trying keys. A slow hash, as for passwords, would
only make each request slower.

Guarantees: the file contains hashes, not keys. It is replaced atomically, has mode 0600, and concurrent commands do not
lose each other's changes. An invalid file is rejected as a whole.
Out of scope: keys of FC7_API_KEYS.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from model_store.durable import atomic_file, locked
from service.api_keys import NAME_EXPECTED, Scope, is_name
from service.errors import ServiceError
from service.rate_limit import Rate, parse_rate

FORMAT: Final = 1
_PREFIX: Final = "fc7_"  # scanners for leaked secrets recognize keys by it
_KEY_BYTES: Final = 32
_MAX_BYTES: Final = 10_000_000


@dataclass(eq=False)
class KeysFileError(ServiceError):
    """The file of API keys cannot be read or written, or does not allow a change. `problem` also says how to fix it."""

    path: Path
    problem: str
    message = "The keys file {path} {problem}."


def _check_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"expected {NAME_EXPECTED}")
    return text


def _check_rate(text: str) -> str:
    return str(parse_rate(text))


class StoredKey(BaseModel):
    """A key as the file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_check_name)]
    scope: Literal["read", "write", "admin"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime
    expires: AwareDatetime | None = None
    rate: Annotated[str, AfterValidator(_check_rate)] | None = None

    @property
    def level(self) -> Scope:
        """The scope as a number."""
        return Scope[self.scope.upper()]

    def has_expired(self, now: datetime) -> bool:
        """Return whether the key is not valid any more."""
        return self.expires is not None and self.expires <= now


class _Header(BaseModel):
    format: int


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = FORMAT
    keys: tuple[StoredKey, ...] = ()


def digest_of(key: str) -> str:
    """Return the hash by which a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[StoredKey, ...]:
    """Return the keys of a file. Raises FileNotFoundError, KeysFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeysFileError(path, f"cannot be read ({error.strerror}). Make it readable for this user") from None
    try:
        found = _Header.model_validate_json(data).format
        if found != FORMAT:
            raise KeysFileError(path, f"has format {found}, and this version reads {FORMAT}. Install a newer version")
        keys = _File.model_validate_json(data).keys
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        problem = f"is not valid ({where}: {first['msg']}). Correct it, or delete it and create the keys again"
        raise KeysFileError(path, problem) from None
    for what in ("name", "sha256"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise KeysFileError(path, f"has two keys with the same {what}. Remove one of them")
    return keys


def create_key(
    path: Path, name: str, scope: Scope, *, expires: datetime | None = None, rate: Rate | None = None
) -> tuple[StoredKey, str]:
    """Add a random key, and return its description and the key itself, which is not stored.

    Raises KeysFileError, also if there is a key with this name.
    """
    secret = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    stored = StoredKey.model_validate(
        {
            "name": name,
            "scope": scope.name.lower(),
            "sha256": digest_of(secret),
            "created": datetime.now(UTC).replace(microsecond=0),
            "expires": expires,
            "rate": None if rate is None else str(rate),
        }
    )
    with _changing(path) as keys:
        if name in [key.name for key in keys]:
            raise KeysFileError(path, f"has a key {name}. Choose another name, or revoke it first: fc7 keys revoke")
        keys.append(stored)
    return stored, secret


def revoke_key(path: Path, name: str) -> StoredKey:
    """Remove a key, and return its description. Raises KeysFileError, also if there is none with this name."""
    with _changing(path) as keys:
        found = next((key for key in keys if key.name == name), None)
        if found is None:
            raise KeysFileError(path, f"has no key {name}. List the keys: fc7 keys list")
        keys.remove(found)
    return found


@contextmanager
def _changing(path: Path) -> Iterator[list[StoredKey]]:
    """Yield the keys of the file, and write them back at the end of the block. Raises KeysFileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with locked(lock):
            _give_to_owner(lock, path.parent)
            keys = list(read_keys(path)) if path.exists() else []
            yield keys
            content = _File(keys=tuple(keys)).model_dump_json(indent=2) + "\n"
            with atomic_file(path, mode=0o600) as file:
                _give_to_owner(file.fileno(), path.parent)
                file.write(content.encode())
    except OSError as error:
        problem = f"cannot be written ({error.strerror}). Use a folder that this user can write to (FC7_KEYS_FILE)"
        raise KeysFileError(path, problem) from error


def _give_to_owner(file: int | Path, folder: Path) -> None:
    """Give a file to the owner of its folder, who runs the service, if root writes it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(file, owner.st_uid, owner.st_gid)
