"""HTTP server: uvicorn with header limits and a graceful shutdown.

Guarantees:
- On SIGTERM or Ctrl-C, new requests are refused with 503 while admitted ones are answered. Then the process exits with
  code 0, at the latest after `shutdown_timeout_s`. A second signal stops it immediately.
- If the model dies, the process exits with code 1 after the waiting requests were answered.
- A connection whose headers do not arrive in time, or exceed 32 KiB, is closed.

Out of scope: several worker processes, reloading, TLS and HTTP/2 (use a proxy).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import time
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
import uvloop
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.auth import check_binding
from service.errors import SettingError
from service.settings import Settings
from service.state import State

_HEADER_S = 20.0
_HEADER_BYTES = 32 * 1024
_LAST_RESPONSES_S = 1


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with a size and a time limit for the headers of a request."""

    _headers_complete = False
    _header_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first headers."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse data; while the headers are incomplete, count it and keep the timer running."""
        super().data_received(data)
        if self._headers_complete:
            return
        self._header_bytes += len(data)
        if self._header_bytes > _HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are longer than {_HEADER_BYTES} bytes.")
        self._start_timer()

    def on_message_begin(self) -> None:
        """Record that the headers of a request have started to arrive."""
        super().on_message_begin()
        self._headers_complete = False

    def on_headers_complete(self) -> None:
        """Stop the timer, and start to answer."""
        self._headers_complete, self._header_bytes = True, 0
        self._stop_timer()
        if not self.url.startswith(b"/"):
            self._apply_target()
        super().on_headers_complete()

    def _apply_target(self) -> None:
        """Use the host of a request target such as http://host/path instead of the Host header. RFC 9112, 3.2.2."""
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":  # asks about the server as a whole
            self.url = b"/"
            return
        target = urlsplit(self.url)
        self.url = (target.path or b"/") + (b"?" + target.query if target.query else b"")
        self.headers[:] = [header for header in self.headers if header[0] != b"host"]
        self.headers.append((b"host", target.netloc))

    def on_response_complete(self) -> None:
        """Wait for the next headers; empty lines before them are allowed, and count as part of them."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._headers_complete = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(_HEADER_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown. `exit_code` is the exit code of the process."""

    def __init__(self, config: uvicorn.Config, state: State, shutdown_timeout_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._shutdown_timeout_s = shutdown_timeout_s
        self._signalled = False
        self._loop = asyncio.get_running_loop()
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining at the first signal, stop immediately at the second.

        Signals interrupt the main thread anywhere, even while it holds a lock such as the log's. Draining needs that
        lock, so it is scheduled on the event loop instead.
        """
        del sig, frame
        if self._signalled:
            self.should_exit = self.force_exit = True
        self._signalled = True
        self._loop.call_soon_threadsafe(self._state.drain)

    async def on_tick(self, counter: int) -> bool:
        """Check, ten times a second, whether to stop."""
        since = self._state.draining_since
        if since is not None and (self._state.in_flight == 0 or time.monotonic() - since > self._shutdown_timeout_s):
            self.should_exit = True
        if self._state.dead is not None:
            self.exit_code = 1
            self.should_exit = True
        return await super().on_tick(counter)


def bind(settings: Settings) -> socket.socket:
    """Return a socket bound to host and port. Raises SettingError if it is not possible or not allowed."""
    check_binding(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # An address such as fe80::1%eth0 has a scope, which only getaddrinfo reads.
        [address, *_] = socket.getaddrinfo(settings.host, settings.port, family, socket.SOCK_STREAM)
        listener.bind(address[4])
    except OSError as exc:
        listener.close()
        if exc.errno in (errno.EADDRINUSE, errno.EACCES):
            raise SettingError("FC7_PORT", str(settings.port), f"a free port ({exc.strerror})") from exc
        raise SettingError("FC7_HOST", settings.host, f"an address of this machine ({exc.strerror})") from exc
    return listener


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Run `serve_until_stopped` on uvloop, which takes a third less time per request than asyncio's event loop.

    uvloop also disables Nagle's algorithm; asyncio does not for a socket that was bound before. A response is two
    writes, and the second one would wait 40 ms for the client's acknowledgement.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_until_stopped(app, settings, listener))


async def serve_until_stopped(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Open the application, answer on `listener` until a signal arrives, and return the exit code.

    Raises Fc7Error if the application must not start.
    """
    state: State = app.state.fc7
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",  # opened below, so that its errors are raised unchanged
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=_LAST_RESPONSES_S,
    )
    server = Server(config, state, settings.shutdown_timeout_s)
    with listener:
        async with app.router.lifespan_context(app):
            # The objects created so far stay alive. Without freezing them, each full collection would take about 50 ms.
            gc.collect()
            gc.freeze()
            listener.listen(config.backlog)
            host, port = listener.getsockname()[:2]
            state.log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await server.serve(sockets=[listener])
    return server.exit_code
