"""`POST /v1/search`: which indexed images are nearest to each image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from index.errors import IndexModelError, IndexMovedError
from index.filters import parse_where
from index.interface import Answers
from service.api.auth import require
from service.api.deadline import within_limits
from service.api.fast_route import FastRoute
from service.api.parameters import ModelSearchQuery
from service.api.routes.common import WITH_BODY, WORK, StateDep, image_body, problems
from service.api.schemas import ModelName, SearchAnswer, SearchResult
from service.api.upload import Upload, receive
from service.errors import ModelNotLoadedError
from service.inference.embed import embed
from service.settings import Scope
from service.state import State

router = APIRouter(tags=["search"], dependencies=[Depends(require(Scope.READ)), WORK], route_class=FastRoute)


@router.post(
    "/v1/search",
    operation_id="search",
    summary="Find the indexed images nearest to each image",
    responses=problems(*WITH_BODY, 409),
    openapi_extra=image_body(),
)
async def search(request: Request, query: Annotated[ModelSearchQuery, Query()], state: StateDep) -> SearchAnswer:
    """Send one image as the body, or several as multipart parts named `file`."""
    find = partial(state.index().search, k=query.k, where=parse_where(query.where), mode=query.mode)
    await state.artifact(query.model)
    async with receive(request, state.body_limits, state.budget) as body:
        return await within_limits(request, state, _search(request, state, find, body.uploads, query))


async def _search(
    request: Request, state: State, find: Callable[..., Answers], uploads: list[Upload], query: ModelSearchQuery
) -> SearchAnswer:
    index, model = state.index(), query.model
    if model is None and query.mode is not None:
        await state.in_index(index.mode, query.mode)  # reject an unavailable mode before the model runs
    while True:
        own = index.searched.fingerprint
        try:
            async with state.use_for(own) if model is None else state.use(model) as serving:
                embedded = await embed(request, state, serving, uploads)
            vectors, fingerprint = np.stack([image.row.fc7 for image in embedded]), serving.artifact.fingerprint
            found = await state.in_index(partial(find, vectors, fingerprint=fingerprint))
            break
        except (IndexModelError, IndexMovedError, ModelNotLoadedError):
            if model is not None or index.searched.fingerprint == own:
                raise  # else the index went over to another model meanwhile
    return SearchAnswer(
        model=ModelName.of(serving.artifact),
        mode=found[0].mode,
        results=[SearchResult.of(neighbours) for neighbours in found],
    )
