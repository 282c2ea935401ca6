"""The keys that the server accepts: those of FC7_API_KEYS and of the keys file, which is read again if it changes.

Guarantees:
- Keys are compared in constant time, by their SHA-256.
- A changed keys file is applied within about a second, without a restart. If it is not valid, the keys before the
  change stay in effect; if it is deleted, its keys are revoked.
- Once keys are required, they stay required until the server stops, even if the last one is revoked.

Out of scope: locking out clients that guess: a key of `fc7 keys` has 256 random bits. Limits that replicas share.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fastapi import Request

from service.api_keys import ApiKey, Scope
from service.errors import (
    ForbiddenError,
    KeyExpiredError,
    RateLimitError,
    UnauthorizedError,
    UnknownKeyError,
)
from service.keys_file import KeysFileError, StoredKey, read_keys
from service.observability.request_log import Notes, notes_of
from service.rate_limit import TokenBucket, parse_rate
from service.settings import Settings

_RELOAD_S: Final = 1.0
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key that is accepted. `bucket` is None without a rate limit."""

    digest: bytes
    name: str
    scope: Scope
    expires: datetime | None = None
    bucket: TokenBucket | None = None


class Keyring:
    """The accepted keys. As long as none are required, every caller has the scope `admin`."""

    def __init__(self, settings: Settings, log: Any, on_failure: Callable[[str], None]) -> None:
        """Read the keys. on_failure: called with the reason of each refusal: missing, unknown, expired, scope or rate.

        Raises KeysFileError, SettingError.
        """
        self._path = settings.keys_path
        self._log = log
        self._on_failure = on_failure
        self._fixed = tuple(_entry_of(key, position) for position, key in enumerate(settings.api_keys, start=1))
        self._keys = self._fixed
        self._allow_anonymous = settings.allow_anonymous
        settings.check_keys_file()
        self._stamp = _stamp_of(self._path)
        self.required = bool(self._fixed) or self._stamp is not None
        if self._stamp is not None:
            self._replace(read_keys(self._path))

    def check(self, request: Request, needed: Scope, *, basic: bool = False) -> None:
        """Raise UnauthorizedError, RateLimitError or ForbiddenError unless the request's key has the scope `needed`.

        basic: also accept the key as the password of HTTP's Basic scheme, for clients that know no other.
        """
        notes = notes_of(request.scope)
        notes.audited = needed > Scope.READ
        if not self.required:
            return
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else ""
        password = _password(credentials) if basic and scheme.lower() == "basic" else ""
        secret = bearer or password or request.headers.get("x-api-key")
        if not secret:
            if not self._allow_anonymous or needed > Scope.READ:
                self._on_failure("missing")
                raise UnauthorizedError
            return
        self._check_key(secret, needed, notes)

    def check_again(self, request: Request, needed: Scope) -> None:
        """Raise ForbiddenError unless the key of a request that `check` has accepted also has the scope `needed`.

        For a request that needs a higher scope because of what it names. It counts once for the key's rate.
        """
        scope = notes_of(request.scope).scope
        if scope is not None:
            self._check_scope(scope, needed)

    async def watch(self) -> None:
        """Read the keys file whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(_RELOAD_S)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Read the keys file if it has changed. Errors are logged."""
        stamp = _stamp_of(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if stamp is not None:
            self.required = True
        try:
            stored = read_keys(self._path) if stamp is not None else ()
            before = {entry.name for entry in self._keys}
            self._replace(stored)
        except (KeysFileError, FileNotFoundError) as error:
            self._log.error("keys not reloaded", detail=str(error))
            return
        after = {entry.name for entry in self._keys}
        self._log.info("keys reloaded", added=sorted(after - before), removed=sorted(before - after), keys=len(after))
        if stamp is None:
            self._log.error("keys file deleted", detail=f"{self._path} does not exist any more. Its keys are revoked.")

    def _check_key(self, secret: str, needed: Scope, notes: Notes) -> None:
        """Raise the error for a key that is not accepted, and note its name."""
        entry = self._find(secret)
        if entry is None:
            self._on_failure("unknown")
            raise UnknownKeyError
        notes.key = entry.name
        if entry.expires is not None and entry.expires <= datetime.now(UTC):
            self._on_failure("expired")
            raise KeyExpiredError(entry.name, entry.expires)
        wait = 0.0 if entry.bucket is None else entry.bucket.take(time.monotonic())
        if entry.bucket is not None and wait:
            self._on_failure("rate")
            raise RateLimitError(entry.name, entry.bucket.rate, math.ceil(wait))
        notes.scope = entry.scope
        self._check_scope(entry.scope, needed)

    def _check_scope(self, scope: Scope, needed: Scope) -> None:
        if scope < needed:
            self._on_failure("scope")
            raise ForbiddenError(
                f"This request requires a key with the scope {needed.name.lower()}. "
                f"Your key has the scope {scope.name.lower()}."
            )

    def _find(self, secret: str) -> _Entry | None:
        found = None
        sent = _digest(secret)
        for entry in self._keys:  # always compare all keys: the time must not reveal which one matched
            if hmac.compare_digest(entry.digest, sent):
                found = entry
        return found

    def _replace(self, stored: Iterable[StoredKey]) -> None:
        """Accept these keys and the fixed ones. A key whose rate stays the same keeps its bucket."""
        names = {entry.name for entry in self._fixed}
        buckets = {entry.name: entry.bucket for entry in self._keys}
        entries = []
        for key in stored:
            if key.name in names:
                raise KeysFileError(
                    self._path, f"has a key {key.name}, and so has FC7_API_KEYS. Give one of them another name"
                )
            rate, bucket = parse_rate(key.rate) if key.rate else None, buckets.get(key.name)
            if rate is None or bucket is None or bucket.rate != rate:
                bucket = None if rate is None else TokenBucket(rate, time.monotonic())
            entries.append(_Entry(bytes.fromhex(key.sha256), key.name, key.level, key.expires, bucket))
        self._keys = (*self._fixed, *entries)


def _entry_of(key: ApiKey, position: int) -> _Entry:
    """Return the entry for a key of FC7_API_KEYS. Without a name, it gets one that a key of the file cannot have."""
    return _Entry(_digest(key.secret.get_secret_value()), key.name or f"FC7_API_KEYS:{position}", key.scope)


def _stamp_of(path: Path) -> _Stamp | None:
    """Return what changes if the file is replaced or written; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _password(credentials: str) -> str:
    """Return the password of Basic credentials; "" if they are not valid."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
