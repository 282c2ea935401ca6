"""Scopes that routes require, and the check of the address that the server listens on.

Guarantees: without keys the server listens on loopback only, unless FC7_ALLOW_ANONYMOUS is set.
Out of scope: the keys (see `service.api.access.keyring`), web pages of other origins (see `service.api.access.origin`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from service.api_keys import Scope
from service.errors import SettingError
from service.settings import Settings, variable

BEARER = HTTPBearer(auto_error=False, description="An API key. Required only if keys are configured.")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, in its own header.")


def require(needed: Scope) -> Callable[..., Awaitable[None]]:
    """Return a dependency that rejects a request unless its key has the scope `needed`."""

    # The last two parameters only describe the keys in the OpenAPI document.
    async def check(
        request: Request, _bearer: Annotated[object, Security(BEARER)], _header: Annotated[object, Security(HEADER)]
    ) -> None:
        request.app.state.keyring.check(request, needed)

    return check


def check_binding(settings: Settings) -> None:
    """Raise SettingError if the server could be reached from other machines without keys or explicit permission.

    In a container the process listens on all addresses, and the address that counts is where the port is published.
    """
    field = "bind" if settings.bind else "host"
    address = settings.bind or settings.host
    if settings.has_keys() or settings.allow_anonymous or _is_loopback(address):
        return
    raise SettingError(
        variable(field),
        address,
        "a loopback address, because there is no key. Other addresses require one (fc7 keys new, or FC7_API_KEYS), or "
        "FC7_ALLOW_ANONYMOUS=true to give everyone access",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
