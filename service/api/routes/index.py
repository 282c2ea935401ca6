"""`/v1/index`: statistics, snapshots and near-duplicates."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request, status

from index.catalog.backup import snapshot_name
from index.filters import parse_where
from service.api.parameters import DuplicatesQuery
from service.api.routes.common import ADMIN, READ, WORK, StateDep, problems, within_limits
from service.api.schemas import DuplicatesAnswer, IndexInfo, PairInfo, SnapshotInfo

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
    return await state.in_index(lambda: IndexInfo.of(index.stats(), index.spaces.describe(), state.versions.progress))


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
    """List the nearest pairs of images within a distance. All pairs are compared: for an index with more than about
    10,000 images, use a filter, or `fc7 index duplicates`, which has no deadline.
    """
    index, where, stop = state.index(), parse_where(query.where), threading.Event()
    try:
        work = state.in_index(lambda: index.duplicates(query.threshold, query.limit, where=where, stopped=stop.is_set))
        pairs = await within_limits(request, state, work)
    finally:
        stop.set()
    return DuplicatesAnswer(pairs=[PairInfo(**asdict(pair)) for pair in pairs])
