"""`/v1/index`: counts and sizes, a copy of it all, and what is in it twice."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, status

from index.catalog.backup import snapshot_name
from index.filters import parse_where
from service.api.auth import require
from service.api.deadline import within_limits
from service.api.parameters import DuplicatesQuery
from service.api.routes.common import WORK, StateDep, problems
from service.api.schemas import DuplicatesAnswer, IndexInfo, PairInfo, SnapshotInfo
from service.settings import Scope

router = APIRouter(prefix="/v1/index", tags=["index"], dependencies=[WORK])

_READ, _ADMIN = Depends(require(Scope.READ)), Depends(require(Scope.ADMIN))


@router.get(
    "",
    operation_id="index_stats",
    summary="Counts and sizes of the index",
    dependencies=[_READ],
    responses=problems(401, 403, 409, 503),
)
async def index_stats(state: StateDep) -> IndexInfo:
    """Count images and bytes, name the model that made the vectors, and show the progress of a migration to another."""
    index = state.index()
    return await state.in_index(lambda: IndexInfo.of(index.stats(), index.spaces.describe(), state.index_sync.progress))


@router.post(
    "/snapshot",
    operation_id="take_snapshot",
    summary="Copy the whole index, as it is now",
    dependencies=[_ADMIN],
    status_code=status.HTTP_201_CREATED,
    responses=problems(401, 403, 409, 503, 507),
)
async def take_snapshot(state: StateDep) -> SnapshotInfo:
    """Make a folder under FC7_HOME/snapshots while others go on writing; `fc7 index restore` reads it.

    The answer comes when the copy is on disk, however long that takes.
    """
    target = state.settings.home / "snapshots" / snapshot_name()
    manifest = await state.in_index(state.index().snapshot, target)
    return SnapshotInfo.of(target, manifest)


@router.get(
    "/duplicates",
    operation_id="list_duplicates",
    summary="Pairs of images that are nearly the same",
    dependencies=[_READ],
    responses=problems(401, 403, 409, 422, 503, 504),
)
async def list_duplicates(
    request: Request, query: Annotated[DuplicatesQuery, Query()], state: StateDep
) -> DuplicatesAnswer:
    """List the nearest pairs under a distance. Every image is compared with every other: past some ten thousand use
    a filter, or `fc7 index duplicates`, which has no deadline.
    """
    index, where, stop = state.index(), parse_where(query.where), threading.Event()
    try:
        work = state.in_index(lambda: index.duplicates(query.threshold, query.limit, where=where, stopped=stop.is_set))
        pairs = await within_limits(request, state, work)
    finally:
        stop.set()
    return DuplicatesAnswer(
        pairs=[PairInfo(first=pair.first, second=pair.second, distance=pair.distance) for pair in pairs]
    )
