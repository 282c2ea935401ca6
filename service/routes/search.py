"""`POST /v1/search`: which indexed images are nearest to each image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from numpy.typing import NDArray

from index.interface import Answers
from index.where import parse_where
from service.answers import embed, within_limits
from service.bodies import Upload, receive
from service.routes.common import WITH_BODY, WORK, StateDep, image_body, problems
from service.schemas import ModelName, SearchAnswer, SearchQuery, SearchResult
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
    find = partial(state.index().search, k=query.k, where=parse_where(query.where))
    async with receive(request, state.body_limits, state.budget) as body:
        return await within_limits(request, state, _search(request, state, find, body.uploads))


async def _search(
    request: Request, state: State, find: Callable[[NDArray[np.float32]], Answers], uploads: list[Upload]
) -> SearchAnswer:
    async with state.use() as serving:
        embedded = await embed(request, state, serving, uploads)
    found = await state.in_index(find, np.stack([image.row.fc7 for image in embedded]))
    return SearchAnswer(
        model=ModelName.of(serving.artifact), results=[SearchResult.of(neighbours) for neighbours in found]
    )
