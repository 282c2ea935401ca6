"""What several routers share: the state, the body's documentation, the documented problems.

Does not: answer.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from service.api.schemas import InferenceProblem, Problem
from service.errors import DrainingError
from service.state import State


async def _state(request: Request) -> State:
    state: State = request.app.state.fc7
    return state


async def _open_for_work(request: Request) -> None:
    state: State = request.app.state.fc7
    if state.draining_since is not None:
        raise DrainingError


StateDep = Annotated[State, Depends(_state)]
WORK = Depends(_open_for_work)

_IMAGE = {"schema": {"type": "string", "format": "binary"}}


def image_body(*, metadata: str | None = None, many: bool = True) -> dict[str, Any]:
    """Return the OpenAPI words for a body of images; `metadata` describes that part, where it is taken."""
    one = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": one, "description": "The images, each a part named file."} if many else one
    properties: dict[str, Any] = {"file": files}
    if metadata is not None:
        properties["metadata"] = {"type": "string", "contentMediaType": "application/json", "description": metadata}
    form = {"schema": {"type": "object", "required": ["file"], "properties": properties}}
    content = {"image/*": _IMAGE, "application/octet-stream": _IMAGE, "multipart/form-data": form}
    return {"requestBody": {"required": True, "content": content}}


_MEANINGS = {
    400: "Not an image, a broken one, or a malformed body.",
    401: "A key is needed.",
    403: "The key does not allow this.",
    404: "No such thing.",
    408: "The body came too slowly.",
    409: "The index was made by another model, or there is no place for the named one.",
    413: "Too many bytes or images.",
    415: "A format or Content-Type that is not taken.",
    422: "A bad parameter, or too many pixels.",
    503: "The queue is full, the service is not ready or is shutting down; see Retry-After.",
    504: "The deadline passed.",
    507: "No room on the disk.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI words for the problems that a path can answer with."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in sorted(statuses)}


def inference_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI words for what a path of the Open Inference Protocol can answer with instead."""
    return {status: {"model": InferenceProblem, "description": _MEANINGS[status]} for status in sorted(statuses)}


WITH_BODY = (400, 401, 403, 408, 413, 415, 422, 503, 504)
