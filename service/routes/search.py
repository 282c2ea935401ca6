"""`POST /v1/search`: which indexed images are nearest to each image, and `GET /v1/index`: what is indexed."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from index.image_index import ImageIndex
from service.answers import embed, within_limits
from service.bodies import Upload, receive
from service.routes.common import WITH_BODY, WORK, StateDep, image_body, problems
from service.schemas import IndexInfo, ModelName, SearchAnswer, SearchQuery, SearchResult
from service.security import require
from service.settings import Scope
from service.state import State

router = APIRouter(tags=["search"], dependencies=[Depends(require(Scope.READ)), WORK])


@router.post(
    "/v1/search",
    operation_id="search",
    summary="Find the indexed images nearest to each image",
    responses=problems(*WITH_BODY, 409),
    openapi_extra=image_body(),
)
async def search(request: Request, query: Annotated[SearchQuery, Query()], state: StateDep) -> SearchAnswer:
    """Send one image as the body, or several as multipart parts named `file`."""
    index = state.index()
    async with receive(request, state.body_limits, state.budget) as body:
        return await within_limits(request, state, _search(request, state, index, body.uploads, query.k))


@router.get(
    "/v1/index",
    operation_id="index_stats",
    summary="Counts and sizes of the index",
    responses=problems(401, 403, 409, 503),
)
async def index_stats(state: StateDep) -> IndexInfo:
    """Count images and bytes, and name the model that made the vectors."""
    return IndexInfo.of(await state.in_index(state.index().stats))


async def _search(request: Request, state: State, index: ImageIndex, uploads: list[Upload], k: int) -> SearchAnswer:
    async with state.use() as serving:
        embedded = await embed(request, state, serving, uploads)
    found = await state.in_index(index.search, np.stack([image.row.fc7 for image in embedded]), k)
    return SearchAnswer(
        model=ModelName.of(serving.artifact), results=[SearchResult.of(neighbours) for neighbours in found]
    )
