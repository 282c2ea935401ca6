"""HTTP server: uvicorn with header limits, a limit of connections and a shutdown within a time limit.

Guarantees:
- After a signal, new requests are refused with 503 while admitted ones are answered. Requests that take longer than
  `answer_time` are answered with 503. Then everything is closed, and the process exits with code 0. It never takes
  longer than `shutdown_timeout_s` (see `service.process`).
- If the model dies, the process exits with code 1 after the waiting requests were answered.
- A connection whose headers do not arrive in time, or exceed 32 KiB, is closed.
- A connection beyond the limit, which depends on the limit of open files, is answered with 503 and closed.

Out of scope: several worker processes, reloading, and HTTP/2 (use a proxy).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import uvicorn
import uvloop
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.access.auth import check_binding
from service.api.problems import problem_of
from service.errors import ResourcesExhaustedError, SettingError
from service.process import Shutdown, max_connections, running_threads
from service.settings import Settings
from service.state import State
from service.tls import Certificate, open_certificate

_HEADER_S = 20.0
_HEADER_BYTES = 32 * 1024
_LAST_RESPONSES_S = 1.0
_CANCEL_S = 0.2
_LINGER_S = 1.0
_MAX_LINGERING = 10  # refused connections. Each holds a descriptor of those that are left for the index and uploads.
_MAX_CLOSING_S = 5.0
_SWITCH_S = 0.001


def answer_time(shutdown_timeout_s: float) -> float:
    """Return for how many seconds of a shutdown requests are answered. The rest, at most 5 s, is left for closing."""
    return shutdown_timeout_s - min(_MAX_CLOSING_S, shutdown_timeout_s / 2)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with a size and a time limit for the headers of a request.

    If more than `max_connections` are open, a new one is answered with 503 and closed. In a flood of connections, some
    may be closed before their clients have read the answer.
    """

    _headers_complete = False
    _header_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def __init__(self, *arguments: Any, max_connections: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._max_connections = max_connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first headers."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse()
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse data; while the headers are incomplete, count it and keep the timer running."""
        if self._refused:
            return
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

    def _refuse(self) -> None:
        """Answer before a request arrives. An immediate close could make the client lose the response."""
        self._refused = True
        answer = problem_of("/", ResourcesExhaustedError("connections"))
        headers = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
        head = b"HTTP/1.1 %d Service Unavailable\r\nconnection: close\r\n" % answer.status_code
        self.transport.write(head + headers + b"\r\n" + bytes(answer.body))
        if len(self.connections) > self._max_connections + _MAX_LINGERING:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _start_timer(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(_HEADER_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown. `exit_code` is the exit code of the process."""

    def __init__(self, config: uvicorn.Config, state: State, shutdown_timeout_s: float, on_death: Callable[[], None]):
        """on_death: called once, when the model stops working."""
        super().__init__(config)
        self._state = state
        self._answer_s = answer_time(shutdown_timeout_s)
        self._on_death = on_death
        self.exit_code = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `Shutdown`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Check, ten times a second, whether to stop."""
        if self._state.draining_since is not None and (self._state.in_flight == 0 or self._answer_s_left() <= 0):
            self.should_exit = True
        if self._state.dead is not None:
            self.exit_code = 1
            self.should_exit = True
            self._on_death()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections, wait for the last responses, and end what is left."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._connections_closed(min(_LAST_RESPONSES_S, self._answer_s_left()))
        if self.server_state.tasks:
            self._state.log.warning("requests cut off by the shutdown", requests=len(self.server_state.tasks))
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._connections_closed(_CANCEL_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # clients that do not read their responses

    async def _connections_closed(self, timeout_s: float) -> None:
        """Wait until all connections are closed, for at most `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        while (self.server_state.connections or self.server_state.tasks) and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def _answer_s_left(self) -> float:
        since = self._state.draining_since
        return self._answer_s if since is None else since + self._answer_s - time.monotonic()


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


def run(app: FastAPI, settings: Settings, listener: socket.socket, shutdown: Shutdown | None = None) -> int:
    """Run `serve_until_stopped` on uvloop, which takes a third less time per request than asyncio's event loop.

    uvloop also disables Nagle's algorithm; asyncio does not for a socket that was bound before. A response is two
    writes, and the second one would wait 40 ms for the client's acknowledgement.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_until_stopped(app, settings, listener, shutdown))


async def serve_until_stopped(
    app: FastAPI, settings: Settings, listener: socket.socket, shutdown: Shutdown | None = None
) -> int:
    """Open the application, answer on `listener` until the shutdown, and return the exit code.

    shutdown: starts it at a signal, and ends the process at its time limit; None to do neither.
    Raises Fc7Error if the application must not start.
    """
    state: State = app.state.fc7
    config = uvicorn.Config(
        app,
        http=partial(Protocol, max_connections=max_connections()),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",  # opened below, so that its errors are raised unchanged
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    certificate = open_certificate(settings, state.log)
    config.load()
    if certificate is not None:
        config.ssl = certificate.context
    server = Server(
        config,
        state,
        settings.shutdown_timeout_s,
        on_death=lambda: None if shutdown is None else shutdown.request(exit_code=1),
    )
    with listener:
        async with app.router.lifespan_context(app), _watched(certificate):
            # The objects created so far stay alive. Without freezing them, each full collection would take about 50 ms.
            gc.collect()
            gc.freeze()
            # By default, a decoding thread waits 5 ms for a busy event loop to release the GIL.
            sys.setswitchinterval(_SWITCH_S)
            if shutdown is not None:
                loop = asyncio.get_running_loop()
                shutdown.serve(
                    settings.shutdown_timeout_s,
                    start=partial(loop.call_soon_threadsafe, state.drain),
                    on_timeout=lambda: state.log.error("shutdown timed out", running=running_threads()),
                )
            listener.listen(config.backlog)
            host, port = listener.getsockname()[:2]
            scheme = "http" if certificate is None else "https"
            state.log.info("listening", url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
            await server.serve(sockets=[listener])
    return server.exit_code


@asynccontextmanager
async def _watched(certificate: Certificate | None) -> AsyncIterator[None]:
    """Load a renewed certificate inside the block."""
    if certificate is None:
        yield
        return
    watcher = asyncio.create_task(certificate.watch())
    try:
        yield
    finally:
        watcher.cancel()
