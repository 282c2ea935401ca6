"""Fetches images from Label Studio.

Guarantees: only the configured address is contacted: another scheme, host or port is refused, also after a redirect.
At most `max_bytes` of a response are read, within `timeout_s`. Proxies of the environment are not used. The token is
sent to Label Studio only, and is part of no error.
Out of scope: cloud storage that Label Studio redirects to; choose "proxy through Label Studio" for such a storage.
References: https://labelstud.io/guide/access_tokens (a legacy token is sent as it is, a personal access token is
exchanged for one that is valid for some minutes).
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from service.api.label_studio.errors import LabelStudioRefusedError, TaskImageError

_REDIRECTS: Final = 3
_SAFE: Final = "/%:@!$&'()*+,;=~?"  # characters that a path may have, and escapes
_CHUNK: Final = 64 * 1024
_PARTS_OF_JWT: Final = 3
_RENEW_S: Final = 120.0  # Label Studio's access tokens are valid for 5 minutes


@dataclass(slots=True)
class _Access:
    header: str
    until: float


class LabelStudioClient:
    """A client of one Label Studio. All methods may be called from any thread, and block."""

    def __init__(self, url: str, token: str | None, *, max_bytes: int, timeout_s: float) -> None:
        """url: such as http://label-studio:8080. token: legacy token or personal access token."""
        self._base = url.rstrip("/") + "/"
        self._origin = _origin_of(urlsplit(self._base))
        self._token, self._max_bytes, self._timeout_s = token, max_bytes, timeout_s
        self._access: _Access | None = None
        self._lock = threading.Lock()

    def fetch(self, task: object, url: str) -> bytes:
        """Return the file at a URL of Label Studio, or at a path. Raises LabelStudioRefusedError, TaskImageError."""
        end = time.monotonic() + self._timeout_s
        target = self.resolve(task, url)
        try:
            header = self._authorization(end)
            for _ in range(_REDIRECTS + 1):
                status, location, data = self._request("GET", target, header, end)
                if status in (301, 302, 303, 307, 308) and location:
                    target = self.resolve(task, urljoin(target.geturl(), location))
                    continue
                if status != http.client.OK:
                    hint = ". Check FC7_LABEL_STUDIO_TOKEN" if status in (401, 403, 404) else ""
                    raise TaskImageError(task, f"Label Studio answered {status} for {target.path[:200]}{hint}")
                return data
        except (OSError, http.client.HTTPException, ValueError) as error:
            name = f"{type(error).__name__}: {error}"[:200]
            raise TaskImageError(task, f"Label Studio at {self._base} could not be read ({name})") from error
        raise TaskImageError(task, "Label Studio redirects too often")

    def resolve(self, task: object, url: str) -> SplitResult:
        """Return a URL or path as a URL of Label Studio. Raises LabelStudioRefusedError for another host."""
        try:
            # A path starts at the root of the host: Label Studio writes its own prefix into its paths.
            target = urlsplit(urljoin(self._base, url))
            allowed = _origin_of(target) == self._origin and not target.username and not target.password
        except ValueError:
            raise LabelStudioRefusedError(task, f"{url[:100]!r} is not a URL") from None
        if not allowed:
            raise LabelStudioRefusedError(
                task,
                f"{url[:100]!r} is not at {self._base}, the only address that fc7 fetches images from",
            )
        return target

    def _authorization(self, end: float) -> str | None:
        if self._token is None or len(self._token.split(".")) != _PARTS_OF_JWT:
            return None if self._token is None else f"Token {self._token}"
        with self._lock:
            if self._access is None or self._access.until < time.monotonic():
                body = json.dumps({"refresh": self._token}).encode()
                status, _, data = self._request(
                    "POST", urlsplit(urljoin(self._base, "api/token/refresh")), None, end, body
                )
                answer: Any = json.loads(data) if status == http.client.OK else {}
                if not isinstance(answer, dict) or not isinstance(answer.get("access"), str):
                    raise ValueError(f"it answered {status} when FC7_LABEL_STUDIO_TOKEN was exchanged")
                self._access = _Access(f"Bearer {answer['access']}", time.monotonic() + _RENEW_S)
            return self._access.header

    def _request(
        self, method: str, target: SplitResult, authorization: str | None, end: float, body: bytes | None = None
    ) -> tuple[int, str | None, bytes]:
        """Return status, Location and body of a response. Raises OSError, HTTPException, ValueError."""
        kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        connection = kind(target.hostname or "", target.port, timeout=_left(end))
        headers = {"Accept": "*/*", "User-Agent": "fc7"}
        if authorization:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            path = quote(target.path or "/", safe=_SAFE) + (
                f"?{quote(target.query, safe=_SAFE)}" if target.query else ""
            )
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = bytearray()
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > self._max_bytes:
                    raise ValueError(f"the file is larger than {self._max_bytes:,} bytes")
                if connection.sock is not None:
                    connection.sock.settimeout(_left(end))
            return response.status, response.getheader("Location"), bytes(data)
        finally:
            connection.close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left


def _origin_of(url: SplitResult) -> tuple[str, str | None, int | None]:
    ports = {"http": 80, "https": 443}
    return url.scheme, url.hostname, url.port or ports.get(url.scheme)
