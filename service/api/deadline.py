"""Cancel a request's work at its deadline, or when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from service.errors import ClientGoneError, DeadlineError
from service.state import State

_T = TypeVar("_T")


async def within_limits(request: Request, state: State, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` for at most the deadline, and no longer than the client waits.

    Raises DeadlineError, ClientGoneError; `work` is cancelled then.
    """
    # Here and not in a task of its own, which would cost a tenth of a millisecond: who waits for the client to leave
    # cancels this one.
    own, left = asyncio.current_task(), False

    def end(_gone: asyncio.Task[None]) -> None:
        nonlocal left
        left = own is not None and own.cancel()

    gone = asyncio.create_task(_client_leaves(request))
    gone.add_done_callback(end)
    try:
        async with asyncio.timeout(state.settings.deadline_s):
            return await work
    except TimeoutError:
        raise DeadlineError(state.settings.deadline_s) from None
    except asyncio.CancelledError:
        if not left or own is None or own.uncancel():
            raise
        raise ClientGoneError from None
    finally:
        gone.remove_done_callback(end)
        gone.cancel()


async def _client_leaves(request: Request) -> None:
    """Return when the connection is closed. The body was read before: nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
