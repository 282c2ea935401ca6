"""Listen and serve: uvicorn, run by us, with an orderly end.

Promises:
- On SIGTERM or Ctrl-C new work is refused (503, readiness false) while what was admitted is answered; then the process
  ends with exit code 0, at the latest after `drain_s`. A second signal ends it at once.
- When the model dies, the process ends with exit code 1 after its waiting requests were answered.
- A connection that does not finish its headers in time is closed.

Does not: fork, reload, speak TLS or HTTP/2 (a proxy does).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import SettingError
from service.security import check_binding
from service.settings import Settings
from service.state import State

_HEADER_S = 20.0
_HEADER_BYTES = 32 * 1024
_LAST_ANSWERS_S = 1


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time that a request's headers may take."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first headers."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; half of a header starts the clock, a whole one stops it."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(_HEADER_S, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """uvicorn's server with our end: drained, not cut. `exit_code` tells how it ended."""

    def __init__(self, config: uvicorn.Config, state: State, drain_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_s = drain_s
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal, stop at once at the second. Not passed on: the exit code is ours."""
        del sig, frame
        if self._state.draining_since is not None:
            self.should_exit = self.force_exit = True
        self._state.drain()

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
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    server = Server(config, state, settings.drain_s)
    with listener:
        async with app.router.lifespan_context(app):
            listener.listen(config.backlog)
            host, port = listener.getsockname()[:2]
            state.log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await server.serve(sockets=[listener])
    return server.exit_code
