"""What happens around every request, as plain ASGI: its identity, its log line, its metrics, its last resort.

Promises:
- Every answer has an `X-Request-ID` (the client's, where it is a decent one), the safety headers, and `Server-Timing`
  where the model ran.
- An exception that nobody foresaw is logged with its trace and answered with a 500 problem.
- Where an answer comes before the body was read whole, the connection is closed after a moment of reading on: closed at
  once, the client's unread bytes would reset it and the answer would be lost.

Does not: look into bodies.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem_of_bug
from service.observability.request_log import Notes
from service.observability.tracing import RequestSpan

if TYPE_CHECKING:
    from service.state import State

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LINGER_S = 2.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY.encode()),
)


class Observe:
    """Identity, headers, metrics, log line and last resort of every request."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        notes = Notes(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope["fc7.notes"] = notes
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", notes.request_id.encode()), *_SAFETY]
                if notes.run:
                    timing = ", ".join(
                        f"{stage};dur={seconds * 1000:.1f}"
                        for stage, seconds in (("decode", notes.decode), ("queue", notes.queue), ("run", notes.run))
                    )
                    headers.append((b"server-timing", timing.encode()))
                message["headers"] = headers
            await send(message)

        self._state.in_flight += 1
        try:
            await self._app(scope, receive, send_marked)
        except Exception:
            self._state.log.exception("bug", request_id=notes.request_id, path=scope["path"])
            if not status:
                await problem_of_bug().for_path(scope["path"])(scope, receive, send_marked)
        finally:
            self._state.in_flight -= 1
            # As the loop's next thing: it sends what was written only when this one is over.
            asyncio.get_running_loop().call_soon(self._record, scope, notes, status, time.perf_counter() - started)

    def _record(self, scope: Scope, notes: Notes, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        metrics = self._state.metrics
        metrics.requests.labels(route, scope["method"] if route != "unknown" else "", str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if notes.reason:
            metrics.refusals.labels(notes.reason).inc()
        log = self._state.log.error if status == HTTPStatus.INTERNAL_SERVER_ERROR else self._state.log.info
        more: dict[str, object] = {"images": notes.images} if notes.images else {}
        if self._state.tracing is not None:
            now = time.time_ns()
            answered = RequestSpan(
                scope["method"], route, status, notes.request_id, notes.images, now - int(seconds * 1e9), now
            )
            more["trace_id"] = self._state.tracing.record(Headers(scope=scope), answered, notes.stages)
        log(
            "request",
            request_id=notes.request_id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(seconds * 1000, 1),
            client=scope["client"][0] if scope.get("client") else None,
            **more,
            **({"reason": notes.reason} if notes.reason else {}),
        )


class LingeringClose:
    """Answer early, read on for a moment, then close: for answers that come before the body was read whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if not ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
            await self._app(scope, receive, send)
            return
        unread = True

        async def receive_counted() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_early(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(raw=message.setdefault("headers", []))["Connection"] = "close"
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _read_on(receive_counted)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        async def _read_on(receive_next: Receive) -> None:
            try:
                async with asyncio.timeout(_LINGER_S):
                    while unread:
                        await receive_next()
            except TimeoutError:
                return

        await self._app(scope, receive_counted, send_early)
