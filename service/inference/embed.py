"""The way of a request's images: admitted, decoded, queued, run; within the deadline, and while the client is there.

Promises: images are admitted all or none, before any is decoded; the first bad image of a request ends it, named by its
index; when the deadline passes or the client leaves, what was not begun is not begun.
Does not: read bodies, know routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from model_store.errors import Fc7Error
from model_store.image import CROP, SIZE, PreparedImage, encode_jpeg, inspect_and_prepare
from service.api.upload import Upload
from service.errors import BadImageError
from service.inference.batch import Row
from service.inference.batcher import Ticket
from service.inference.model_pool import Serving
from service.observability.request_log import Notes, notes_of
from service.state import State

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image and what the model said of it; `picture` is its JPEG, where it was asked for."""

    prepared: PreparedImage
    row: Row
    picture: bytes | None


async def embed(
    request: Request,
    state: State,
    serving: Serving,
    uploads: Sequence[Upload],
    *,
    views: int = 1,
    pictures: bool = False,
) -> list[Embedded]:
    """Return what the model `serving` says of each image, in order; with `pictures`, the prepared pictures as JPEG too.

    Raises BadImageError (of several images), ImageError (of one), QueueFullError, RunnerError and their like.
    """
    return await _together(
        request,
        state,
        serving,
        [partial(_embed_one, state, upload.data, views=views, picture=pictures) for upload in uploads],
    )


async def embed_views(request: Request, state: State, serving: Serving, pixels: NDArray[np.uint8]) -> list[Row]:
    """Return what the model `serving` says of each view, uint8 [n,224,224,3], in order: nothing is decoded or cut.

    Raises QueueFullError, RunnerError and their like.
    """
    return await _together(request, state, serving, [partial(_run_one, state, _framed(view)) for view in pixels])


async def _together(
    request: Request,
    state: State,
    serving: Serving,
    images: Sequence[Callable[[Ticket, Notes], Coroutine[Any, Any, _T]]],
) -> list[_T]:
    """Admit all images of a request, or none, and answer them; the first that fails ends the others."""
    notes = notes_of(request.scope)
    notes.images = len(images)
    with serving.batcher.admit(len(images)) as ticket:
        if len(images) == 1:  # the usual case: a task of its own costs more than it gives
            result = await images[0](ticket, notes)
            state.metrics.images.inc()
            return [result]
        tasks = [asyncio.create_task(image(ticket, notes)) for image in images]
        try:
            results = await asyncio.gather(*tasks)
        except Fc7Error as error:
            failed = next((i for i, task in enumerate(tasks) if task.done() and task.exception() is error), 0)
            raise BadImageError(failed, error) from error
        finally:
            for task in tasks:
                task.cancel()
    state.metrics.images.inc(len(images))
    return results


async def hashes(state: State, uploads: Sequence[Upload]) -> list[str]:
    """Return the SHA-256 of each image's bytes, in hexadecimal."""
    return await state.decode(lambda: [hashlib.sha256(upload.data).hexdigest() for upload in uploads])


async def _embed_one(state: State, data: bytes, ticket: Ticket, notes: Notes, *, views: int, picture: bool) -> Embedded:
    # The event loop is woken once, when all is done: from decoding to the model it is not asked, and takes no time from
    # them.
    outcome: Future[Embedded] = Future()

    def decode() -> None:
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            with ticket.decoding():
                started = time.perf_counter()
                prepared = inspect_and_prepare(data, max_pixels=state.settings.max_pixels)
                jpeg = encode_jpeg(prepared.pixels) if picture else None
                seconds = time.perf_counter() - started
                row = ticket.submit(prepared.pixels, views)
            state.metrics.stage_seconds.labels("decode").observe(seconds)
            notes.stage("decode", seconds)
        except BaseException as error:
            outcome.set_exception(error)
        else:
            row.add_done_callback(lambda done: _follow(done, outcome, prepared, jpeg))

    state.decode_pool.submit(decode)
    embedded = await asyncio.wrap_future(outcome)
    _note(state, embedded.row, notes)
    return embedded


def _follow(row: Future[Row], outcome: Future[Embedded], prepared: PreparedImage, picture: bytes | None) -> None:
    if row.cancelled():
        outcome.set_exception(CancelledError())
    elif (error := row.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(Embedded(prepared, row.result(), picture))


async def _run_one(state: State, pixels: NDArray[np.uint8], ticket: Ticket, notes: Notes) -> Row:
    row = await asyncio.wrap_future(ticket.submit(pixels))
    _note(state, row, notes)
    return row


def _note(state: State, row: Row, notes: Notes) -> None:
    state.metrics.stage_seconds.labels("queue").observe(row.waited)
    notes.stage("queue", row.waited, ago=row.ran)
    notes.stage("run", row.ran)


def _framed(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a prepared picture whose centre view is `view`: uint8 [224,224,3] -> [256,256,3]."""
    edge = (SIZE - CROP) // 2
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[edge : edge + CROP, edge : edge + CROP] = view
    return picture
