"""Dependencies, deadlines, cache headers and OpenAPI fragments shared by the routers."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from service.api.access.auth import require
from service.api.problems import PROBLEM_TYPE
from service.api.schemas.bodies import IMAGES
from service.api.schemas.problems import InferenceProblem, Problem
from service.api_keys import Scope
from service.errors import ClientGoneError, DeadlineError, DrainingError
from service.state import State

_T = TypeVar("_T")
StoppableWork = Callable[[Callable[[], bool]], _T]


async def get_state(request: Request) -> State:
    """Dependency: return the state of the application."""
    state: State = request.app.state.fc7
    return state


StateDep = Annotated[State, Depends(get_state)]


async def check_draining(state: StateDep) -> None:
    """Dependency: raise DrainingError while the server is shutting down."""
    if state.draining_since is not None:
        raise DrainingError


WORK = Depends(check_draining)
READ, WRITE, ADMIN = Depends(require(Scope.READ)), Depends(require(Scope.WRITE)), Depends(require(Scope.ADMIN))

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLES = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Examples of one search instead of files: a file each, or the key of an indexed image as text.",
}


def image_body(
    *,
    metadata: str | None = None,
    many: bool = True,
    json: Mapping[str, Any] = IMAGES,
    examples: bool = False,
) -> dict[str, Any]:
    """Return the OpenAPI request body for images.

    metadata: describes the part of that name, if it is accepted. json: the schema of a JSON body. examples: whether
    parts named positive and negative are accepted.
    """
    one = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": one, "description": "The images, each in a part named file."} if many else one
    properties: dict[str, Any] = {"file": files}
    if metadata is not None:
        properties["metadata"] = {"type": "string", "contentMediaType": "application/json", "description": metadata}
    form: dict[str, Any] = {"schema": {"type": "object", "required": ["file"], "properties": properties}}
    if examples:
        properties |= {"positive": _EXAMPLES, "negative": _EXAMPLES}
        form["schema"].pop("required")
    content = {
        "image/*": _IMAGE,
        "application/octet-stream": _IMAGE,
        "multipart/form-data": form,
        "application/json": {"schema": json},
    }
    return {"requestBody": {"required": True, "content": content}}


_DESCRIPTIONS = {
    400: "The body is malformed, or an image cannot be read.",
    401: "An API key is required.",
    403: "The API key does not have the required scope, or a web page of another origin sent the request.",
    404: "The image, job, model or file was not found.",
    408: "The body did not arrive in time.",
    409: "The request conflicts with the current state of the index or of the loaded models.",
    413: "The body has too many bytes or images.",
    415: "The image format, the Content-Type or the Content-Encoding is not supported.",
    416: "The range starts after the end of the file.",
    422: "A parameter is invalid, or an image has too many pixels.",
    429: "The key sent more requests than its rate allows. Retry-After says when to try again.",
    503: "The queue is full, or the service is not ready or is shutting down. Retry-After says when to try again.",
    504: "The request exceeded its deadline.",
    507: "The disk is full.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for the problems that an operation can return."""
    return _errors(statuses, PROBLEM_TYPE, Problem)


def inference_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for the errors that an operation of the Open Inference Protocol can return."""
    return _errors(statuses, "application/json", InferenceProblem)


def _errors(statuses: tuple[int, ...], media_type: str, model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    # A reference instead of FastAPI's `model`, which would build a validator for each status of each route.
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    if HTTPStatus.UNAUTHORIZED in statuses:  # the operation requires a key, and a key can have a rate limit
        statuses = (*statuses, HTTPStatus.TOO_MANY_REQUESTS)
    return {status: {"description": _DESCRIPTIONS[status], "content": content} for status in sorted(statuses)}


def revalidated(request: Request, content: bytes, media_type: str) -> Response:
    """Return content that clients store and revalidate: 304 without it if they still have the same bytes.

    The ETag is a hash of the bytes. `private`: a shared cache would not know that the response required a key.
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


READY_RETRY = {"Retry-After": "5"}  # seconds
WITH_BODY = (400, 401, 403, 408, 413, 415, 422, 503, 504)


async def in_index_until_gone(request: Request, state: State, work: StoppableWork[_T]) -> _T:
    """Run `work(stopped)` on an index thread, without a deadline.

    `stopped()` is true once the client is gone or the server shuts down. Raises ClientGoneError.
    """
    gone = threading.Event()

    def stopped() -> bool:
        return gone.is_set() or state.draining_since is not None

    try:
        return await within_limits(request, state, state.in_index(work, stopped), deadline=False)
    finally:
        gone.set()


def ends_if(stopped: Callable[[], bool]) -> Callable[..., None]:
    """Return a progress callback that raises DrainingError once `stopped()` is true."""

    def advance(*_progress: object) -> None:
        if stopped():
            raise DrainingError

    return advance


async def in_index_until_deadline(request: Request, state: State, work: StoppableWork[_T], *, share: float = 1.0) -> _T:
    """Run `work(stopped)` on an index thread until the deadline.

    `stopped()` is true once the client is gone, or this share of the time is over; the rest is for the answer.
    Raises ClientGoneError, DeadlineError.
    """
    gone, end = threading.Event(), time.monotonic() + share * state.settings.deadline_s

    def stopped() -> bool:
        return gone.is_set() or time.monotonic() > end

    try:
        return await within_limits(request, state, state.in_index(work, stopped))
    finally:
        gone.set()


async def within_limits(request: Request, state: State, work: Coroutine[Any, Any, _T], *, deadline: bool = True) -> _T:
    """Await `work` until the deadline, as long as the client stays connected. The body must have been read before.

    deadline: whether there is one.

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
        async with asyncio.timeout(state.settings.deadline_s if deadline else None):
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
