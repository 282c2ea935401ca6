"""Checks the host that a request names and, for requests without a key, the web page that sent it.

A server without keys trusts everyone who can connect to it, and every web page that its user visits can. Browsers say
in headers where a request comes from, and pages cannot change these headers.

Guarantees:
- A request without exactly one valid Host header is rejected with 400, as RFC 9112 requires. HTTP/1.0 needs none.
- Without keys, the host must be a loopback name, an IP address or one of FC7_ALLOWED_HOSTS; others get 421. A page
  that points its own name at this server (DNS rebinding) is therefore rejected. With keys, the host is checked only if
  FC7_ALLOWED_HOSTS is set.
- A request without a key is rejected with 403 if it comes from a page of another origin that is not in
  FC7_ALLOWED_ORIGINS, whatever its method: reading costs time too. Only following a link is allowed.

Out of scope: requests with a key (browsers never add one by themselves), clients other than browsers, and
X-Forwarded-Host, which anyone can send.
References: RFC 9110, 7.2 and 15.5.20 (Host, 421); RFC 9112, 3.2 (400); Fetch Metadata (W3C). The order is that of
CrossOriginProtection in Go's net/http: first Sec-Fetch-Site, then Origin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from service.addresses import is_ip_address
from service.api.access.keyring import Keyring
from service.api.problems import refuse
from service.errors import HostMalformedError, HostNotAllowedError, OriginNotAllowedError, ServiceError
from service.settings import Settings

_HOST: Final = re.compile(r"([A-Za-z0-9_.~-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?")
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_NAMES: Final = frozenset(
    (b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"x-api-key", b"authorization")
)
_REMEMBERED: Final = 64  # accepted Host headers of different clients


class RequestOrigin:
    """ASGI middleware that rejects requests to other hosts and from pages of other origins."""

    def __init__(self, app: ASGIApp, settings: Settings, keyring: Keyring) -> None:
        self._app = app
        self._hosts = settings.allowed_hosts
        self._origins = settings.allowed_origins
        self._check_hosts = "*" not in self._hosts and (bool(self._hosts) or not keyring.required)
        self._allow_anonymous = settings.allow_anonymous
        self._keyring = keyring
        self._accepted: dict[bytes, tuple[str, str]] = {}  # Host header -> host, port; parsing it takes 5 microseconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ServiceError as error:
                await refuse(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raise HostMalformedError, HostNotAllowedError or OriginNotAllowedError if the request is rejected."""
        headers: dict[bytes, str] = {}
        hosts = []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name in _NAMES:
                headers[name] = value.decode("latin-1")
        host, port = self._check_host(hosts, scope["http_version"])
        has_keys = self._keyring.required  # becomes true while the server runs, if the first key is created
        if (not has_keys or self._allow_anonymous) and not (has_keys and _sends_key(headers)):
            self._check_page(scope["method"], headers, host, port)

    def _check_host(self, values: list[bytes], http_version: str) -> tuple[str, str]:
        """Return host and port as `_parse_host` does. Raises HostMalformedError, HostNotAllowedError."""
        if len(values) == 1 and values[0] in self._accepted:
            return self._accepted[values[0]]
        host, port = _parse_host([value.decode("latin-1") for value in values], http_version)
        if self._check_hosts and host and not self._is_allowed_host(host):
            raise HostNotAllowedError(host)
        if values and len(self._accepted) < _REMEMBERED:
            self._accepted[values[0]] = host, port
        return host, port

    def _is_allowed_host(self, host: str) -> bool:
        if host == "localhost" or host.endswith(".localhost") or is_ip_address(host):
            return True
        return any(
            host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in self._hosts
        )

    def _check_page(self, method: str, headers: Mapping[bytes, str], host: str, port: str) -> None:
        """Raise OriginNotAllowedError if the request comes from a page of another origin that is not allowed."""
        origin = headers.get(b"origin")
        if origin is None and method not in _SAFE and b"referer" in headers:
            origin = _origin_of(headers[b"referer"])  # old browsers send no Origin with a form
        if origin is not None and ("*" in self._origins or origin.lower() in self._origins):
            return
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            # The browser compared the addresses itself. This is right behind a proxy that changes Host, too.
            crosses = site not in ("same-origin", "none") and not _follows_link(method, headers)
        else:
            crosses = origin is not None and not _is_same(origin, host, port)
        if crosses:
            raise OriginNotAllowedError(origin or "another site")


def _parse_host(values: list[str], http_version: str) -> tuple[str, str]:
    """Return the host in lower case and the port of the Host header; two empty strings if HTTP/1.0 sent none.

    Raises HostMalformedError.
    """
    if not values and http_version == "1.0":
        return "", ""
    found = _HOST.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or (found[1].startswith("[") and not is_ip_address(found[1])):
        raise HostMalformedError(", ".join(values)[:100])
    return found[1].lower().removesuffix("."), found[2] or ""


def _sends_key(headers: Mapping[bytes, str]) -> bool:
    # Only these two: a browser sends credentials in the form "Basic" by itself, if a page puts them into an address.
    return b"x-api-key" in headers or headers.get(b"authorization", "").lower().startswith("bearer ")


def _follows_link(method: str, headers: Mapping[bytes, str]) -> bool:
    """Return whether the user opens a path in a window or tab. The page with the link cannot read the response."""
    opens = headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest", "document") == "document"
    return opens and method in _SAFE


def _origin_of(url: str) -> str:
    """Return scheme://host:port of a URL, or "null" if it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "null"
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else "null"


def _is_same(origin: str, host: str, port: str) -> bool:
    """Return whether an origin names this host and port. The scheme may differ: a proxy may terminate TLS."""
    scheme, separator, authority = origin.lower().partition("://")
    found = _HOST.fullmatch(authority)
    if not separator or found is None:
        return False  # "null": a sandboxed frame or a local file
    default = _DEFAULT_PORTS.get(scheme, "")
    return found[1].removesuffix(".") == host and (found[2] or default) == (port or default)
