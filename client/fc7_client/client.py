"""The two clients: `Client` and `AsyncClient`, with the same operations.

Guarantees: a client can be used by several threads (`Client`) or tasks (`AsyncClient`). The API key is sent only to the
given server: redirects are not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from ipaddress import ip_address
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from fc7_client.backups import BackupOperations, SnapshotOperations
from fc7_client.errors import Fc7ClientError
from fc7_client.folder import FolderOperations
from fc7_client.images import ImageOperations
from fc7_client.jobs import JobOperations
from fc7_client.queries import QueryOperations
from fc7_client.retry import Retry
from fc7_client.server import ServerOperations
from fc7_client.transports import AsyncTransport, SyncTransport

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 60.0


class Operations(
    QueryOperations,
    ImageOperations,
    FolderOperations,
    JobOperations,
    BackupOperations,
    SnapshotOperations,
    ServerOperations,
):
    """All operations."""


class Client(Operations, SyncTransport):
    """A client of one fc7 server. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        retry: Retry = Retry(),  # noqa: B008 - immutable
        timeout_s: float = _TIMEOUT_S,
        **http: Any,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        url: of the server, with its path prefix if it has one. key: the API key. timeout_s: for connecting, and for
        each wait for the server. http: further arguments of `httpx.Client`, such as `verify` and `proxy`.
        """
        super().__init__(httpx.Client(**_options(url, key, timeout_s, http)), retry)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Operations, AsyncTransport):
    """A client of one fc7 server for asyncio. Use it as an asynchronous context manager, or call `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        retry: Retry = Retry(),  # noqa: B008 - immutable
        timeout_s: float = _TIMEOUT_S,
        **http: Any,
    ) -> None:
        """Prepare a client; nothing is sent yet. The arguments are those of `Client`."""
        super().__init__(httpx.AsyncClient(**_options(url, key, timeout_s, http)), retry)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _options(url: str, key: str | None, timeout_s: float, http: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `httpx.Client` and `httpx.AsyncClient`. Raises Fc7ClientError for an invalid URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Fc7ClientError(f"{url!r} is not the address of a server. Use http://HOST:PORT.")
    headers = httpx.Headers({"User-Agent": f"fc7-client/{_version()}"})
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    headers.update(http.get("headers"))
    # A proxy of the environment cannot reach this machine's own addresses.
    options = {"base_url": url, "timeout": timeout_s, "trust_env": not _is_loopback(parts.hostname)}
    return options | dict(http) | {"headers": headers, "follow_redirects": False}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _version() -> str:
    try:
        return metadata.version("fc7-client")
    except metadata.PackageNotFoundError:  # used from a checkout
        return "0"
