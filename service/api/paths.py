"""What holds for every path: prefix of a proxy, trailing slash, HEAD, OPTIONS, `Allow`, and compressed bodies.

Guarantees:
- Below FC7_ROOT_PATH, paths work with the prefix and without it, so a proxy may strip it or not.
- A path with a trailing slash is answered like the path without it, and never redirected.
- HEAD is answered on every path that has GET, with the same headers. OPTIONS returns the allowed methods.
- `Allow` lists every method of the path, also if several routes share it.
- Compressed bodies below /v1 get 415 with `Accept-Encoding`. The paths below /v2 decompress themselves.

Out of scope: duplicate slashes inside a path (404), X-Forwarded-Prefix: anyone can send it, and one setting is enough.
References: RFC 9110, 9.3.2 (HEAD), 9.3.7 (OPTIONS), 10.2.1 (Allow), 12.5.3 (Accept-Encoding in a response).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import refuse
from service.errors import BodyEncodingError

TRAILING_SLASH: Final = "fc7.trailing_slash"
"""Key of a scope: the path was sent with a trailing slash, so links relative to it need one more `../`."""
HEAD: Final = "fc7.head"
"""Key of a scope: the method was HEAD, so a large body need not be read."""
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_WITHOUT_BODY: Final = ("GET", "HEAD", "OPTIONS")


class Paths:
    """ASGI middleware around the router."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root and scope["path"] == self._root:  # relative links of the page need the slash
            await RedirectResponse(f"{self._root}/", 308)(scope, receive, send)
            return
        routed = {**scope, **_normalized(scope, self._root)}
        encoding = _unsupported_encoding(routed)
        if encoding is not None:
            await refuse(routed, BodyEncodingError(encoding, "identity"))(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            methods = allowed_methods(routed)
            if methods:
                await Response(status_code=204, headers={"Allow": ", ".join(methods)})(scope, receive, send)
                return
        if scope["method"] == "HEAD":
            routed |= {"method": "GET", HEAD: True}  # the server leaves the body out, because `scope` keeps the method

        async def send_with_allow(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                MutableHeaders(raw=message["headers"])["Allow"] = ", ".join(allowed_methods(routed))
            await send(message)

        try:
            await self._app(routed, receive, send_with_allow)
        finally:
            if "route" in routed:
                scope["route"] = routed["route"]  # for the metrics


def allowed_methods(scope: Scope) -> list[str]:
    """Return the methods of a path, from all routes that match it; an empty list if there are none."""
    path = {name: scope[name] for name in ("type", "path", "raw_path", "root_path", "headers")}
    found = [
        method
        for method in _METHODS
        if any(route.matches({**path, "method": method})[0] is Match.FULL for route in scope["app"].router.routes)
    ]
    if "GET" in found:
        found.insert(1, "HEAD")
    return [*found, "OPTIONS"] if found else []


def _normalized(scope: Scope, root: str) -> Scope:
    """Return the entries of the scope with the path: without the prefix `root` and without a trailing slash."""
    raw: bytes = scope["raw_path"]
    if root and raw.startswith(f"{root}/".encode()):
        raw = raw[len(root) :]
    elif not raw.endswith(b"/"):
        return {}
    path = raw.rstrip(b"/") or b"/"
    return {"path": unquote(path.decode("ascii")), "raw_path": path, TRAILING_SLASH: path != raw}


def _unsupported_encoding(scope: Scope) -> str | None:
    """Return the Content-Encoding of a body that the path does not decompress, or None."""
    if scope["method"] in _WITHOUT_BODY or not scope["path"].startswith("/v1/"):
        return None
    codings = b",".join(value for name, value in scope["headers"] if name == b"content-encoding").decode("latin-1")
    unsupported = (coding for coding in map(str.strip, codings.split(",")) if coding.lower() not in ("", "identity"))
    return next(unsupported, None) if codings else None
