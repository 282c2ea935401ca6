"""Listen and serve: uvicorn, run by us, with an orderly end.

Promises:
- On SIGTERM or Ctrl-C new work is refused (503, readiness false) while what was admitted is answered; then the process
  ends with exit code 0, at the latest after `shutdown_timeout_s`. A second signal ends it at once.
- When the model dies, the process ends with exit code 1 after its waiting requests were answered.
- A connection that does not finish its headers in time, or within 32 KiB, is closed.

Does not: fork, reload, speak TLS or HTTP/2 (a proxy does).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import time
from types import FrameType

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
_LAST_ANSWERS_S = 1


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on the bytes and on the time that a request's headers may take."""

    _head_complete = False
    _head_bytes = 0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first headers."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those that do not complete a head keep the clock running, and count."""
        super().data_received(data)
        if self._head_complete:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are longer than {_HEADER_BYTES} bytes.")
        self._watch()

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._head_complete = False

    def on_headers_complete(self) -> None:
        """Stop the clock, and begin to answer."""
        self._head_complete, self._head_bytes = True, 0
        self._stop()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next head; what comes before it (empty lines are allowed) counts as part of it."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._head_complete = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(_HEADER_S, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """uvicorn's server with our end: drained, not cut. `exit_code` tells how it ended."""

    def __init__(self, config: uvicorn.Config, state: State, shutdown_timeout_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_s = shutdown_timeout_s
        self._told = False
        self._loop = asyncio.get_running_loop()
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal, stop at once at the second. Not passed on: the exit code is ours.

        This runs between any two steps of the main thread: what it needs may be held by what it interrupts (the log's
        lock, say), so the loop does it, as its next thing.
        """
        del sig, frame
        if self._told:
            self.should_exit = self.force_exit = True
        self._told = True
        self._loop.call_soon_threadsafe(self._state.drain)

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether it is time to stop."""
        since = self._state.draining_since
        if since is not None and (self._state.in_flight == 0 or time.monotonic() - since > self._drain_s):
            self.should_exit = True
        if self._state.dead is not None:
            self.exit_code = 1
            self.should_exit = True
        return await super().on_tick(counter)


def bind(settings: Settings) -> socket.socket:
    """Return a socket bound to host and port. Raises SettingError where that cannot be, or must not without keys."""
    check_binding(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        if exc.errno in (errno.EADDRINUSE, errno.EACCES):
            raise SettingError("FC7_PORT", str(settings.port), f"a port that is free ({exc.strerror})") from exc
        raise SettingError("FC7_HOST", settings.host, f"an address of this machine ({exc.strerror})") from exc
    return listener


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Do `serve_until_told` in an event loop of its own: uvloop's, which takes a third less time for a request.

    It also switches Nagle's algorithm off, which asyncio's own does not for a socket that was bound before: an answer
    is two writes, and the second would wait 40 ms for the client's acknowledgement.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_until_told(app, settings, listener))


async def serve_until_told(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Open the application, answer on `listener` until told to stop, and return the exit code.

    Raises Fc7Error where the application refuses to open.
    """
    state: State = app.state.fc7
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",  # opened here, so that its errors come as they are
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    server = Server(config, state, settings.shutdown_timeout_s)
    with listener:
        async with app.router.lifespan_context(app):
            # What is there now stays: collections need not walk through it again, some 50 ms each.
            gc.collect()
            gc.freeze()
            listener.listen(config.backlog)
            host, port = listener.getsockname()[:2]
            state.log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await server.serve(sockets=[listener])
    return server.exit_code
