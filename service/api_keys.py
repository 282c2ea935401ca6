"""API keys and what they permit.

Guarantees: an invalid key is rejected without printing it.
Out of scope: checking the key of a request (see `service.api.access.keyring`), the keys file (see `service.keys_file`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pydantic import SecretStr

KEY_LENGTH: Final = 16
KEYS_EXPECTED: Final = (
    "scope:key or name:scope:key, separated by commas, where scope is read, write or admin "
    f"and a key has at least {KEY_LENGTH} characters"
)
NAME_EXPECTED: Final = "1 to 64 letters, digits and ._- that start with a letter or digit; not read, write or admin"
_NAME: Final = re.compile(r"(?!(?:read|write|admin)$)[a-z0-9][a-z0-9._-]{0,63}", re.IGNORECASE)


class Scope(IntEnum):
    """What a key permits. Each scope includes the lower ones."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of FC7_API_KEYS, its scope, and its name; "" if it has none."""

    scope: Scope
    secret: SecretStr
    name: str = ""


def is_name(text: str) -> bool:
    """Return whether `text` can be the name of a key."""
    return _NAME.fullmatch(text) is not None


def parse_keys(value: object) -> object:
    """Parse `read:KEY,camera:write:KEY`; return a value that is not text unchanged."""
    if not isinstance(value, str):
        return value
    keys: list[ApiKey] = []
    for position, entry in enumerate(filter(None, (part.strip() for part in value.split(","))), start=1):
        name, scope, secret = _split(entry)
        if scope.upper() not in Scope.__members__:
            raise ValueError(
                f"entry {position} does not start with read:, write: or admin:, or with a name and one of these"
            )
        if len(secret) < KEY_LENGTH or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ValueError(
                f"entry {position} needs a key of at least {KEY_LENGTH} printable ASCII characters without spaces"
            )
        if name and any(key.name == name for key in keys):
            raise ValueError(f"entry {position} has the name of an earlier entry")
        keys.append(ApiKey(Scope[scope.upper()], SecretStr(secret), name))
    return tuple(keys)


def _split(entry: str) -> tuple[str, str, str]:
    """Return name, scope and key of `scope:key` or `name:scope:key`. A key can contain colons, too."""
    first, _, rest = entry.partition(":")
    if not is_name(first):
        return "", first, rest
    scope, _, secret = rest.partition(":")
    return first, scope, secret
