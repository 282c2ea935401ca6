"""`/v1/index`: statistics, snapshots and near-duplicates."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request, status

from index.catalog.backup import snapshot_name
from index.filters import parse_where
from index.records import Duplicates
from service.api.parameters import DuplicatesQuery
from service.api.routes.common import ADMIN, READ, WORK, StateDep, problems, within_limits
from service.api.schemas.duplicates import DuplicatesAnswer
from service.api.schemas.index import IndexInfo, SnapshotInfo
from service.errors import QueueFullError

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


@router.post(
    "/snapshot",
    operation_id="take_snapshot",
    summary="Take a snapshot of the index",
    dependencies=[ADMIN],
    status_code=status.HTTP_201_CREATED,
    responses=problems(401, 403, 409, 503, 507),
)
async def take_snapshot(state: StateDep) -> SnapshotInfo:
    """Copy the index to a new folder under FC7_HOME/snapshots, without blocking writes.

    Restore it with `fc7 index restore`. The response is sent when the snapshot is on disk; there is no deadline.
    """
    target = state.settings.home / "snapshots" / snapshot_name()
    manifest = await state.in_index(state.index().snapshot, target)
    return SnapshotInfo(name=target.name, path=f"snapshots/{target.name}", **manifest.model_dump())


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
    index, where, stop = state.index(), parse_where(query.where), threading.Event()
    end = time.monotonic() + _DUPLICATES_SHARE * state.settings.deadline_s

    def find() -> Duplicates:
        # Acquired in the thread that does the work, so that it is released when the work ends, not the request.
        if not state.duplicates.acquire(blocking=False):
            raise QueueFullError("searches for near-duplicates", 1, retry_after=math.ceil(state.settings.deadline_s))
        try:
            return index.duplicates(
                query.threshold,
                query.limit,
                where=where,
                stopped=lambda: stop.is_set() or time.monotonic() > end,
            )
        finally:
            state.duplicates.release()

    try:
        found = await within_limits(request, state, state.in_index(find))
    finally:
        stop.set()
    return DuplicatesAnswer.model_validate(asdict(found))
