"""`/v1/index`: statistics, metadata fields and near-duplicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request

from index.duplicates import Duplicates
from index.fields import field_name
from index.filters import parse_field, parse_where
from service.api.parameters import DeleteDuplicatesQuery, DuplicatesQuery, FieldsQuery
from service.api.routes.common import (
    READ,
    WORK,
    WRITE,
    StateDep,
    in_index_until_deadline,
    in_index_until_gone,
    problems,
)
from service.api.schemas.duplicates import DuplicatesAnswer
from service.api.schemas.facets import FieldsAnswer
from service.api.schemas.images import DeletedAnswer
from service.api.schemas.index import IndexInfo
from service.errors import DrainingError, QueueFullError
from service.state import State

_DUPLICATES_SHARE = 0.8  # of the deadline; the rest is for listing what was found
router = APIRouter(prefix="/v1/index", tags=["index"], dependencies=[WORK])


@router.get(
    "",
    operation_id="index_stats",
    summary="Get index statistics",
    dependencies=[READ],
    responses=problems(401, 403, 409, 503),
)
async def index_stats(state: StateDep) -> IndexInfo:
    """Return the number of images, the sizes, the vector spaces, and the progress of a migration to another model."""
    index = state.index()
    return await state.in_index(
        lambda: IndexInfo.of(state.index_stats(index), index.spaces.describe(), state.versions.progress)
    )


@router.get(
    "/duplicates",
    operation_id="list_duplicates",
    summary="List near-duplicate images",
    dependencies=[READ],
    responses=problems(401, 403, 409, 422, 503, 504),
)
async def list_duplicates(
    request: Request, query: Annotated[DuplicatesQuery, Query()], state: StateDep
) -> DuplicatesAnswer:
    """List groups of images that are linked by pairs within a distance.

    Shortly before the deadline the groups found so far are returned, with `complete` set to false. At most 10,000
    images are listed. One such search runs at a time; another one is refused with 503. `fc7 index duplicates` has no
    deadline.
    """
    index, where = state.index(), parse_where(query.where)

    def find(stopped: Callable[[], bool]) -> Duplicates:
        with _alone(state):
            return index.duplicates(query.threshold, query.limit, where=where, stopped=stopped)

    found = await in_index_until_deadline(request, state, find, share=_DUPLICATES_SHARE)
    return DuplicatesAnswer.model_validate(asdict(found))


@router.delete(
    "/duplicates",
    operation_id="delete_duplicates",
    summary="Delete near-duplicates, and keep the best image of each group",
    dependencies=[WRITE],
    responses=problems(401, 403, 409, 422, 503, 507),
)
async def delete_duplicates(
    request: Request, query: Annotated[DeleteDuplicatesQuery, Query()], state: StateDep
) -> DeletedAnswer:
    """Delete the images of each group that are at most `threshold` from the one to keep.

    Images that are linked to it only by others stay; repeat the request to compare them with each other. There is no
    deadline. If the client disconnects or the server shuts down, the rest is not deleted.
    """
    index, where = state.index(), parse_where(query.where)

    def delete(stopped: Callable[[], bool]) -> int:
        with _alone(state):
            return index.delete_duplicates(query.threshold, where=where, stopped=stopped)

    deleted = await in_index_until_gone(request, state, delete)
    if state.draining_since is not None:
        raise DrainingError
    return DeletedAnswer(deleted=deleted)


@router.get(
    "/fields",
    operation_id="list_fields",
    summary="List metadata fields and their values",
    dependencies=[READ],
    responses=problems(401, 403, 409, 422, 503, 504),
)
async def list_fields(request: Request, query: Annotated[FieldsQuery, Query()], state: StateDep) -> FieldsAnswer:
    """Count the metadata fields of the images, and their most frequent values; with a filter, of those that match.

    At most 200 fields and 10,000 values are listed. A field with values of several types is listed once for each.
    """
    index, where = state.index(), parse_where(query.where)
    field = None if query.field is None else field_name(parse_field(query.field))
    found = await in_index_until_deadline(
        request, state, lambda stopped: index.fields(query.limit, where=where, field=field, stopped=stopped)
    )
    return FieldsAnswer.model_validate(asdict(found))


@contextmanager
def _alone(state: State) -> Iterator[None]:
    """Search for near-duplicates, unless another such search runs. Raises QueueFullError.

    Used in the thread that does the work, so that the next search can start when the work ends, not the request.
    """
    if not state.duplicates.acquire(blocking=False):
        raise QueueFullError("searches for near-duplicates", 1, retry_after=math.ceil(state.settings.deadline_s))
    try:
        yield
    finally:
        state.duplicates.release()
