"""Both clients behind the same synchronous calls, and a server whose answers a test decides."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import httpx
from fc7_client import AsyncClient, Client

SYNC, ASYNC = "sync", "async"


class OpenClient(Protocol):
    """Opens a client of a URL. on_response: is called with each answer."""

    def __call__(
        self, url: str, *, on_response: Callable[[httpx.Response], object] | None = None, **options: Any
    ) -> Any:
        """Return the client."""


class Blocking:
    """An `AsyncClient` whose operations are awaited, so that a test can be written once for both clients."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self._client, name)(*args, **kwargs)
            return self._runner.run(result if inspect.iscoroutine(result) else _collect(result))

        return call


async def _collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@contextmanager
def open_clients(kind: str) -> Iterator[OpenClient]:
    """Yield a function that opens clients of this kind. They are closed at the end."""
    opened: list[Client | Blocking] = []

    def open_client(url: str, *, on_response: Callable[[httpx.Response], object] | None = None, **options: Any) -> Any:
        async def hook(response: httpx.Response) -> None:
            if on_response is not None:
                on_response(response)

        if on_response is not None:
            options["event_hooks"] = {"response": [on_response if kind == SYNC else hook]}
        client = Client(url, **options) if kind == SYNC else Blocking(AsyncClient(url, **options), runner)
        opened.append(client)
        return client

    with asyncio.Runner() as runner:
        try:
            yield open_client
        finally:
            for client in opened:
                client.close()


class ScriptedServer:
    """A real HTTP server that gives prepared answers, in order: (status, headers, body), or None to hang up."""

    def __init__(self) -> None:
        self.answers: deque[tuple[int, dict[str, str], bytes] | None] = deque()
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline()
                self.close_connection = True
                if not self.raw_requestline or not self.parse_request():
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.command, self.path, dict(self.headers), body))
                answer = script.answers.popleft()
                if answer is None:
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
