"""A small HTTP client for the commands that ask a running server.

Guarantees: the key is sent to the given server only, not to one that it redirects to. An error of the server is raised
with its message. A file is complete or absent, and an existing file is not replaced.
Out of scope: everything that needs no server, which commands do in the local home.
"""

from __future__ import annotations

import json
import shutil
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from index.errors import TargetExistsError, translate_os_error
from model_store.durable import atomic_file
from model_store.errors import Fc7Error
from service.addresses import is_ip_address
from service.settings import Settings

_TIMEOUT_S: Final = 60.0
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound to


class ServerClient:
    """Sends requests to one server."""

    def __init__(self, url: str | None, key: str | None, settings: Settings) -> None:
        """Use the server of the settings, and their strongest key, unless others are given.

        Raises Fc7Error if that is not the address of a server.
        """
        self._url = (url or _url_of(settings)).rstrip("/")
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Fc7Error(f"{self._url} is not the address of a server. Give --url http://HOST:PORT.")
        if key is None and settings.api_keys and url is None:
            key = max(settings.api_keys, key=lambda each: each.scope).secret.get_secret_value()
        self._key = key
        # A proxy of the environment cannot reach this machine's own addresses.
        local = parts.hostname == "localhost" or is_ip_address(parts.hostname)
        self._opener: OpenerDirector = build_opener(ProxyHandler({})) if local else build_opener()

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._url

    def send(self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json") -> Any:
        """Return the JSON document that the server answers. Raises Fc7Error."""
        with self._open(method, path, body, content_type) as answer:
            return json.load(answer)

    def download(self, path: str, target: Path) -> int:
        """Write the answer to a new file, and return its size. Raises Fc7Error, TargetExistsError, IndexFullError."""
        if target.exists():
            raise TargetExistsError(target, "Choose the name of a new file, or delete this one")
        with self._open("GET", path) as answer:
            try:
                with atomic_file(target, replace=False) as file:
                    shutil.copyfileobj(answer, file)
                    return int(file.tell())
            except HTTPException as error:
                raise Fc7Error(f"The download from {self._url} was interrupted. Try again.") from error
            except OSError as error:
                raise translate_os_error(error, target.parent) from error

    def _open(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> HTTPResponse:
        headers = {"User-Agent": "fc7"} | ({} if body is None else {"Content-Type": content_type})
        request = Request(self._url + path, body, headers, method=method)  # noqa: S310 - checked above
        if self._key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=_TIMEOUT_S)
        except HTTPError as error:
            raise Fc7Error(_detail(error)) from None
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Fc7Error(
                f"No server answers at {self._url} ({reason}). Start one with `fc7 serve`, or give its address with "
                "--url http://HOST:PORT."
            ) from None
        return answer


def _url_of(settings: Settings) -> str:
    if not settings.port:
        raise Fc7Error("FC7_PORT is 0, so the port of the server is not known. Give --url http://HOST:PORT.")
    host = _ANY_ADDRESS.get(settings.host, settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _detail(error: HTTPError) -> str:
    """Return the detail of the problem that a server answered."""
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return f"The server answered {error.code} ({error.reason}) without an explanation. Is it fc7?"
