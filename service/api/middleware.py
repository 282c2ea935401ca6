"""ASGI middleware for every request: request ID, log line, metrics, headers and unexpected exceptions.

Guarantees:
- Every response has an `X-Request-ID` (the client's, if it matches the allowed pattern) and the security headers, and
  `Server-Timing` if the model ran.
- An unexpected exception is logged with its traceback and answered with a 500 problem, or with 503 or 507 if the
  operating system refused memory, a thread, a file or disk space.
- A request that the shutdown cuts off is answered with 503.
- If a response is sent before the whole body was read, the rest is read for a moment before the connection is closed.
  An immediate close would reset the connection, and the client would lose the response.

Out of scope: reading bodies.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import kind_of, problem_of, problem_of_bug
from service.errors import DrainingError, translate_system_error
from service.observability.request_log import Notes
from service.observability.tracing import RequestSpan
from service.state import State

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Routes whose successful requests are logged at the level debug only."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LINGER_S = 2.0
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _CONTENT_SECURITY_POLICY.encode()),
    # Pages of other origins can neither show a thumbnail nor keep a handle on a window of this page.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Observe:
    """Adds the request ID and the headers, records metrics and the log line, and handles unexpected exceptions."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent_id = Headers(scope=scope).get("x-request-id", "")
        notes = Notes(sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex)
        scope["fc7.notes"] = notes
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [
                    *message.get("headers", ()),
                    (b"x-request-id", notes.request_id.encode()),
                    *_SECURITY_HEADERS,
                ]
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
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if self._state.draining_since is None or status:
                raise
            notes.reason = "draining"
            await problem_of(scope["path"], DrainingError())(scope, receive, send_with_headers)
        except Exception as error:
            known = translate_system_error(error)
            if known is None:
                self._state.log.exception("bug", request_id=notes.request_id, path=scope["path"])
            else:
                notes.reason = kind_of(known).slug
            if not status:
                answer = problem_of_bug(scope["path"]) if known is None else problem_of(scope["path"], known)
                await answer(scope, receive, send_with_headers)
        finally:
            self._state.in_flight -= 1
            # Deferred to the next turn of the event loop, which sends the response first.
            asyncio.get_running_loop().call_soon(self._record, scope, notes, status, time.perf_counter() - started)

    def _record(self, scope: Scope, notes: Notes, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        metrics = self._state.metrics
        metrics.requests.labels(route, scope["method"] if route != "unknown" else "", str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if notes.reason:
            metrics.refusals.labels(notes.reason).inc()
        log = self._state.log.info
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log = self._state.log.error
        elif route in PROBES and status == HTTPStatus.OK:
            log = self._state.log.debug  # supervisors send these every few seconds
        client = scope["client"][0] if scope.get("client") else None
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
            client=client,
            **({"key": notes.key} if notes.key else {}),
            **more,
            **({"reason": notes.reason} if notes.reason else {}),
        )
        if notes.audited:
            self._state.log.info(
                "audit",
                key=notes.key or None,
                action=f"{scope['method']} {route}",
                path=scope["path"],
                status=status,
                client=client,
                request_id=notes.request_id,
            )


class LingeringClose:
    """Keeps reading for a moment before the connection is closed, if the response came before the end of the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
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

        async def send_and_drain(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(raw=message.setdefault("headers", []))["Connection"] = "close"
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        async def drain() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while unread:
                        await receive_counted()

        await self._app(scope, receive_counted, send_and_drain)
