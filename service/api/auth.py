"""API keys with scopes, and the check of the address that the server listens on.

Guarantees:
- Keys are compared in constant time.
- Without keys the server listens on loopback only, unless FC7_ALLOW_ANONYMOUS is set.

Out of scope: web pages of other origins (see `service.api.origin`), encryption (use a TLS proxy), counting failed
attempts.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from service.api_keys import ApiKey, Scope
from service.errors import ForbiddenError, SettingError, UnauthorizedError
from service.settings import Settings, variable

_BEARER = HTTPBearer(auto_error=False, description="A key of FC7_API_KEYS. Required only if keys are configured.")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, in its own header.")


class Keyring:
    """The configured keys. Without any, every caller has the scope `admin`."""

    def __init__(self, keys: tuple[ApiKey, ...], *, allow_anonymous: bool) -> None:
        self._keys = tuple((_digest(key.secret.get_secret_value()), key.scope) for key in keys)
        self._anonymous = None if keys and not allow_anonymous else Scope.READ if keys else Scope.ADMIN

    def check(self, request: Request, needed: Scope) -> None:
        """Raise UnauthorizedError or ForbiddenError unless the request's key has the scope `needed`."""
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else ""
        secret = bearer or request.headers.get("x-api-key")
        if not secret:
            if self._anonymous is None or (self._anonymous < needed and self._keys):
                raise UnauthorizedError
            return
        scope = self._scope_of(secret)
        if scope is None and self._keys:
            raise UnauthorizedError
        if scope is not None and scope < needed:
            raise ForbiddenError(
                f"This request requires a key with the scope {needed.name.lower()}. "
                f"Your key has the scope {scope.name.lower()}."
            )

    def _scope_of(self, secret: str) -> Scope | None:
        found = None
        sent = _digest(secret)
        for digest, scope in self._keys:  # always compare all keys: the time must not reveal which one matched
            if hmac.compare_digest(digest, sent):
                found = scope
        return found


def require(needed: Scope) -> Callable[..., Awaitable[None]]:
    """Return a dependency that rejects a request unless its key has the scope `needed`."""

    # The last two parameters only describe the keys in the OpenAPI document.
    async def check(
        request: Request, _bearer: Annotated[object, Security(_BEARER)], _header: Annotated[object, Security(_HEADER)]
    ) -> None:
        request.app.state.keyring.check(request, needed)

    return check


def check_binding(settings: Settings) -> None:
    """Raise SettingError if the server could be reached from other machines without keys or explicit permission.

    In a container the process listens on all addresses, and the address that counts is where the port is published.
    """
    field = "bind" if settings.bind else "host"
    address = settings.bind or settings.host
    if settings.api_keys or settings.allow_anonymous or _is_loopback(address):
        return
    raise SettingError(
        variable(field),
        address,
        "a loopback address, because no key is set. Other addresses require FC7_API_KEYS, or FC7_ALLOW_ANONYMOUS=true "
        "to give everyone access",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
