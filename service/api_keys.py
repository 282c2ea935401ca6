"""API keys and what they permit.

Guarantees: an invalid key is rejected without printing it.
Out of scope: checking the key of a request (see `service.api.auth`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pydantic import SecretStr

KEY_LENGTH = 16
KEYS_EXPECTED = (
    "scope:key pairs separated by commas, where scope is read, write or admin "
    f"and a key has at least {KEY_LENGTH} characters"
)


class Scope(IntEnum):
    """What a key permits. Each scope includes the lower ones."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key and its scope."""

    scope: Scope
    secret: SecretStr


def parse_keys(value: object) -> object:
    """Parse `read:KEY,write:KEY`; return a value that is not text unchanged."""
    if not isinstance(value, str):
        return value
    keys = []
    for position, entry in enumerate(filter(None, (part.strip() for part in value.split(","))), start=1):
        scope, colon, secret = entry.partition(":")
        if not colon or scope.upper() not in Scope.__members__:
            raise ValueError(f"entry {position} does not start with read:, write: or admin:")
        if len(secret) < KEY_LENGTH or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ValueError(
                f"entry {position} needs a key of at least {KEY_LENGTH} printable ASCII characters without spaces"
            )
        keys.append(ApiKey(Scope[scope.upper()], SecretStr(secret)))
    return tuple(keys)
