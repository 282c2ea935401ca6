"""Cancels a request's work at its deadline, or when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from service.errors import ClientGoneError, DeadlineError
from service.state import State

_T = TypeVar("_T")


async def within_limits(request: Request, state: State, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` until the deadline, as long as the client stays connected. The body must have been read before.

    Raises DeadlineError or ClientGoneError; `work` is then cancelled.
    """
    # `work` runs in this task, because a task of its own would cost a tenth of a millisecond. The task that waits for
    # the client to disconnect cancels this one.
    own, disconnected = asyncio.current_task(), False

    def cancel(_watcher: asyncio.Task[None]) -> None:
        nonlocal disconnected
        disconnected = own is not None and own.cancel()

    watcher = asyncio.create_task(_wait_for_disconnect(request))
    watcher.add_done_callback(cancel)
    try:
        async with asyncio.timeout(state.settings.deadline_s):
            return await work
    except TimeoutError:
        raise DeadlineError(state.settings.deadline_s) from None
    except asyncio.CancelledError:
        if not disconnected or own is None or own.uncancel():
            raise
        raise ClientGoneError from None
    finally:
        watcher.remove_done_callback(cancel)
        watcher.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
