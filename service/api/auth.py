"""Who may do what: keys with scopes, and the refusal to listen in the open without a decision.

Promises: keys are compared in constant time; without keys the server listens on loopback only, unless told otherwise;
without a key no other web site's page can change anything (browsers name the origin of a request).
Does not: encrypt (put a TLS proxy in front), count failed attempts.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.errors import ForbiddenError, SettingError, UnauthorizedError
from service.settings import ApiKey, Scope, Settings

_bearer = HTTPBearer(auto_error=False, description="A key of FC7_API_KEYS; needed only where keys are set.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in a header of its own.")


class Keyring:
    """The keys of the server. Without any, everybody may do everything."""

    def __init__(self, keys: tuple[ApiKey, ...], *, allow_anonymous: bool) -> None:
        self._keys = tuple((_digest(key.secret.get_secret_value()), key.scope) for key in keys)
        self._anonymous = None if keys and not allow_anonymous else Scope.READ if keys else Scope.ADMIN

    def check(self, secret: str | None, needed: Scope, origin: str | None) -> None:
        """Raise UnauthorizedError or ForbiddenError unless `secret` (None: no key was sent) allows `needed`.

        origin: what the browser says of the page that asks (`Sec-Fetch-Site`); None without a browser.
        """
        if secret is None:
            if self._anonymous is None or (self._anonymous < needed and self._keys):
                raise UnauthorizedError
            if needed > Scope.READ and origin not in (None, "same-origin", "none"):
                raise ForbiddenError("a page of another site may not change anything here without a key")
            return
        scope = self._scope_of(secret)
        if scope is None and self._keys:
            raise UnauthorizedError
        if scope is not None and scope < needed:
            raise ForbiddenError(f"this needs a key of scope {needed.name.lower()}; yours has {scope.name.lower()}")

    def _scope_of(self, secret: str) -> Scope | None:
        found = None
        wanted = _digest(secret)
        for digest, scope in self._keys:  # never left early: the time must not tell which key came near
            if hmac.compare_digest(digest, wanted):
                found = scope
        return found


def require(needed: Scope) -> Callable[..., Awaitable[None]]:
    """Return a dependency that lets a request pass when its key allows `needed`."""

    async def allowed(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        header: Annotated[str | None, Security(_header)],
    ) -> None:
        _check(request, needed, bearer.credentials if bearer is not None else header)

    return allowed


def check_key(request: Request, needed: Scope) -> None:
    """Do what the dependency of `require` does. Raises UnauthorizedError, ForbiddenError."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" else ""
    _check(request, needed, bearer or request.headers.get("x-api-key") or None)


def _check(request: Request, needed: Scope, secret: str | None) -> None:
    keyring: Keyring = request.app.state.keyring
    keyring.check(secret, needed, request.headers.get("sec-fetch-site"))


def check_binding(settings: Settings) -> None:
    """Raise SettingError where the server would listen beyond loopback without keys, and nobody said that it may."""
    if settings.api_keys or settings.allow_anonymous or _is_loopback(settings.host):
        return
    raise SettingError(
        "FC7_HOST",
        settings.host,
        "a loopback address while no key is set: set FC7_API_KEYS, or FC7_ALLOW_ANONYMOUS=true to let everybody in",
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
