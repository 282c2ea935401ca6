"""A route class that calls its endpoint without FastAPI's dependency resolution, for the paths that receive images.

Dependency resolution costs about as much as everything else that HTTP adds to a small request
(see docs/serving-performance.md).

Guarantees: the OpenAPI document, the parameters, the keys and the error responses are those of a plain APIRoute. While
the queue is full, a request is rejected before anything else is checked.
Out of scope: dependencies other than the request, one query model and the state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, get_origin, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

from service.api.routes.common import check_draining, get_state
from service.api_keys import Scope
from service.state import State


class FastRoute(APIRoute):
    """A route that requires a key of scope `read`; its endpoint takes `request`, `query` and `state`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        # FastAPI's own `request_response` opens two exit stacks for dependencies.
        self.app = request_response(self.get_route_handler())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        endpoint, model = self.endpoint, get_type_hints(self.endpoint)["query"]
        unset = self.response_model_exclude_unset

        async def handle(request: Request) -> Response:
            state = await get_state(request)
            await _reject_if_full(request, state)
            request.app.state.keyring.check(request, Scope.READ)
            await check_draining(state)
            answer = await endpoint(request, _parse(model, request.query_params), state)
            content = answer.__pydantic_serializer__.to_json(answer, exclude_unset=unset, by_alias=True)
            return Response(content, media_type="application/json")

        return handle


async def _reject_if_full(request: Request, state: State) -> None:
    """Raise QueueFullError if the queue is full. The body is read first, so that the connection can be reused.

    At three times the sustainable load, two of three requests are rejected, so rejecting one must cost little.
    """
    length = request.headers.get("content-length", "")
    error = state.refusal() if length.isdigit() and int(length) <= state.settings.max_body_bytes else None
    if error is None:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(state.settings.upload_timeout_s):
            while (await request.receive()).get("more_body", False):
                pass
    raise error


def _parse(model: type[BaseModel], parameters: QueryParams) -> BaseModel:
    """Validate a query string. The last value of a repeated parameter counts, unless the field is a list.

    Raises RequestValidationError, as FastAPI does.
    """
    values: dict[str, Any] = {}
    for name, value in parameters.multi_items():
        field = model.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is list:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([each | {"loc": ("query", *each["loc"])} for each in error.errors()]) from None
