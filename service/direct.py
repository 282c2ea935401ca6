"""The two paths that pictures are sent to, answered past the framework's routing: a third of what a request costs it.

Promises: a client sees what the framework would answer: the same functions answer, and parameters, keys and errors go
by the same models, keyring and table. Where the queue is full, a request costs no more than reading it.
Does not: describe the paths, or answer their other methods (the routes do).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, get_origin

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model_store.errors import Fc7Error
from service.api.auth import check_key
from service.errors import DrainingError
from service.settings import Scope as KeyScope

if TYPE_CHECKING:
    from service.state import State

ErrorAnswer = Callable[[Request, Exception], Awaitable[Response]]


class Path(NamedTuple):
    """The model of a path's parameters, and the function that answers: (request, parameters, state) -> answer."""

    parameters: type[BaseModel]
    answer: Callable[[Request, Any, State], Awaitable[BaseModel]]


class Direct:
    """Answer POST requests to `paths`, and pass all others on."""

    def __init__(self, app: ASGIApp, state: State, paths: Mapping[str, Path], on_error: ErrorAnswer) -> None:
        """`on_error` makes the answer of an Fc7Error and of a RequestValidationError."""
        self._app, self._state, self._paths, self._on_error = app, state, paths, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        path = self._paths.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = SimpleNamespace(path=scope["path"])  # what the metrics are labelled with
        request = Request(scope, receive, send)
        try:
            await self._shed(request)
            check_key(request, KeyScope.READ)
            if self._state.draining_since is not None:
                raise DrainingError
            answer = await path.answer(request, parse(path.parameters, request.query_params), self._state)
        except (Fc7Error, RequestValidationError) as error:
            response = await self._on_error(request, error)
        else:
            response = Response(answer.__pydantic_serializer__.to_json(answer), media_type="application/json")
        await response(scope, receive, send)

    async def _shed(self, request: Request) -> None:
        """Refuse what would find the queue full before anything else is done; the connection stays usable.

        Under three times the load that can be carried, two of three requests are refused: what each costs, the third
        lacks. Raises QueueFullError after the body was read.
        """
        length = request.headers.get("content-length", "")
        full = (
            self._state.refusal() if length.isdigit() and int(length) <= self._state.settings.max_body_bytes else None
        )
        if full is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._state.settings.upload_timeout_s):
                while (await request.receive()).get("more_body", False):
                    pass
        raise full


def parse(model: type[BaseModel], given: QueryParams) -> BaseModel:
    """Return the parameters of a query string; one that comes twice counts once, the last, unless it is a list.

    Raises RequestValidationError as the framework does.
    """
    fields = model.model_fields
    values: dict[str, Any] = {}
    for name, value in given.multi_items():
        if name in fields and get_origin(fields[name].annotation) is list:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([each | {"loc": ("query", *each["loc"])} for each in error.errors()]) from None
