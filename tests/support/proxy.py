"""A reverse proxy for tests, which serves another server below a path prefix, with real HTTP on both sides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

from tests.support.server import TIMEOUT_S, wait_until


class PrefixProxy:
    """ASGI application that forwards the paths below `prefix`, with the prefix (`strip` false) or without it."""

    def __init__(self, target: str, prefix: str, *, strip: bool) -> None:
        self._target = httpx.URL(target)
        self._prefix = prefix
        self._strip = strip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, with the Host header of the client."""
        raw: bytes = scope["raw_path"]
        if not raw.startswith(self._prefix.encode()):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"outside of the prefix"})
            return
        path = (raw[len(self._prefix) :] or b"/") if self._strip else raw
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=False) as client:  # reading certificates takes 0.1 s
            url = self._target.copy_with(raw_path=path + query)
            answer = await client.request(scope["method"], url, headers=scope["headers"], content=body)
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
        await send({"type": "http.response.body", "body": answer.content})


@contextmanager
def reverse_proxy(target: str, prefix: str, *, strip: bool) -> Iterator[str]:
    """Serve `target` below `prefix` on a free port; yield the address with the prefix."""
    app = PrefixProxy(target, prefix, strip=strip)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="test-proxy")
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
