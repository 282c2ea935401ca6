"""Links that download one file without an API key, for browsers, which cannot add a key to a download.

Guarantees: a link is valid for one file and for `VALID_S`, and only until the server stops. It is signed with a random
secret that never leaves the process.
Out of scope: a download that has started, which continues after its link has expired.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import Query, Request, Security

from service.api.access.auth import BEARER, HEADER
from service.api.schemas.backups import DownloadLink
from service.api_keys import Scope
from service.errors import ForbiddenError
from service.observability.request_log import notes_of

VALID_S: Final = 600
_DESCRIPTION = "Token of a download link, instead of an API key."


class DownloadLinks:
    """Makes the tokens of links, and checks them."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def make(self, file: str, valid_s: int = VALID_S) -> tuple[str, datetime]:
        """Return a token for a file such as "backups/NAME", and when it expires."""
        expires = int(time.time()) + valid_s
        return f"{expires}.{self._sign(file, expires)}", datetime.fromtimestamp(expires, UTC)

    def check(self, file: str, token: str) -> None:
        """Raise ForbiddenError unless the token was made for this file and has not expired."""
        expires, _, signature = token.partition(".")
        known = expires.isascii() and expires.isdecimal() and len(expires) <= 12
        if (
            not known
            or not hmac.compare_digest(self._sign(file, int(expires)).encode(), signature.encode())
            or int(expires) <= time.time()
        ):
            raise ForbiddenError(
                f"The download link is not valid any more. Make another one with POST /v1/{file}/link, or send a key "
                "with the scope admin."
            )

    def _sign(self, file: str, expires: int) -> str:
        return hmac.new(self._secret, f"{expires} {file}".encode(), hashlib.sha256).hexdigest()


def link_to(request: Request, file: str) -> DownloadLink:
    """Return a link to a file such as "backups/NAME"."""
    token, expires = request.app.state.download_links.make(file)
    return DownloadLink(token=token, expires=expires)


def key_or_link(folder: str) -> Callable[..., Awaitable[None]]:
    """Return a dependency that rejects a request for `folder`/{name} without a key of the scope admin or a link."""

    # The last two parameters only describe the keys in the OpenAPI document.
    async def check(
        request: Request,
        name: str,
        link: Annotated[str | None, Query(max_length=100, description=_DESCRIPTION)] = None,
        _bearer: Annotated[object, Security(BEARER)] = None,
        _header: Annotated[object, Security(HEADER)] = None,
    ) -> None:
        if link is None:
            request.app.state.keyring.check(request, Scope.ADMIN)
        else:
            notes_of(request.scope).audited = True
            links: DownloadLinks = request.app.state.download_links
            links.check(f"{folder}/{name}", link)

    return check
