"""Requests that use the model whose vectors are searched, while the index may switch to another model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from index.errors import IndexModelError, IndexSwitchedError
from service.errors import ModelNotLoadedError
from service.inference.model_pool import Serving
from service.state import State

_T = TypeVar("_T")


async def with_searched_model(
    state: State, model: str | None, attempt: Callable[[AbstractAsyncContextManager[Serving]], Awaitable[_T]]
) -> _T:
    """Return `await attempt(use)`, where `async with use` gives the model: the named one, or the searched one.

    If the index switches to another model during the attempt, it is repeated with that model, unless one is named.
    Raises what `attempt` and entering `use` raise.
    """
    index = state.index()
    while True:
        searched = index.searched.fingerprint
        try:
            return await attempt(state.use_for(searched) if model is None else state.use(model))
        except (IndexModelError, IndexSwitchedError, ModelNotLoadedError):
            if model is not None or index.searched.fingerprint == searched:
                raise
