"""Retries: when a request is sent again, and after which pause.

Guarantees: a request that the server may have executed is sent again only if that has the same effect as once. No try
starts later than `Retry.total_s` after the first one. The server's Retry-After is never undercut.
References: RFC 9110 section 10.2.3 (Retry-After), section 9.2.2 (Idempotent Methods).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final

import httpx

from fc7_client.errors import ConnectionFailedError, UnavailableError, problem_of
from fc7_client.steps import Flow, Request, Send, Sleep

_BAD_GATEWAY: Final = 502
# The request has not reached the server.
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# Another try would have the same result.
_INVALID: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


@dataclass(frozen=True, slots=True)
class Retry:
    """When to send a request again: after a failed connection, and the statuses 429, 502 and 503.

    total_s: how long after the first try another one may start; 0 turns retries off. first_pause_s: pause before the
    second try; it doubles with each try, up to max_pause_s, and is varied at random so that clients do not return
    together. A longer Retry-After of the server takes precedence. If it ends after total_s, the error is raised
    immediately.
    """

    total_s: float = 30.0
    first_pause_s: float = 0.1
    max_pause_s: float = 5.0


def exchange(request: Request, retry: Retry, url: str) -> Flow[httpx.Response]:
    """Send a request until it succeeds. url: of the server, for messages.

    Raises ConnectionFailedError, ProblemError.
    """
    start, tries = time.monotonic(), 0
    while True:
        tries += 1
        pause = min(retry.first_pause_s * 2 ** min(tries - 1, 30), retry.max_pause_s) * random.uniform(0.5, 1)  # noqa: S311 - no secret
        failure: ConnectionFailedError | UnavailableError
        try:
            response: httpx.Response = yield Send(request)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            failure = ConnectionFailedError(url, reason, tries, time.monotonic() - start)
            failure.__cause__ = error
            again = isinstance(error, _NOT_SENT) or (request.repeatable and not isinstance(error, _INVALID))
        else:
            if response.is_success:
                return response
            problem = problem_of(response)
            if not isinstance(problem, UnavailableError):
                raise problem
            failure, pause = problem, max(pause, problem.retry_after or 0)
            again = request.repeatable or problem.status != _BAD_GATEWAY
        if not again or time.monotonic() - start + pause > retry.total_s:
            raise failure
        yield Sleep(pause)
