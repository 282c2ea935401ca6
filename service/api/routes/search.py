"""`POST /v1/search`: the indexed images that are most similar to each image."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request

from index.errors import IndexModelError, IndexSwitchedError
from index.filters import Where, parse_where
from service.api.novelty import novelty_of
from service.api.parameters import ModelSearchQuery
from service.api.routes.common import READ, WITH_BODY, WORK, StateDep, image_body, problems, within_limits
from service.api.routes.fast_route import FastRoute
from service.api.schemas.answers import ModelName, SearchAnswer, SearchResult
from service.api.upload import receive
from service.errors import ModelNotLoadedError
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(tags=["search"], dependencies=[READ, WORK], route_class=FastRoute)


@router.post(
    "/v1/search",
    operation_id="search",
    summary="Find similar indexed images",
    responses=problems(*WITH_BODY, 409),
    openapi_extra=image_body(),
)
async def search(request: Request, query: Annotated[ModelSearchQuery, Query()], state: StateDep) -> SearchAnswer:
    """Return the most similar indexed images of each image, nearest first.

    Send one image as the body, or several as multipart parts named `file`.
    """
    state.index()
    where = parse_where(query.where)
    await state.artifact(query.model)
    async with receive(request) as body:
        return await within_limits(request, state, _search(request, state, body.images, query, where))


async def _search(
    request: Request, state: State, images: list[bytes], query: ModelSearchQuery, where: Where | None
) -> SearchAnswer:
    index = state.index()
    if query.model is None and query.mode is not None:
        await state.in_index(index.mode, query.mode)  # reject an unavailable mode before the model runs
    while True:
        searched = index.searched.fingerprint
        try:
            async with state.use_for(searched) if query.model is None else state.use(query.model) as serving:
                embedded = await state.embedder.embed(notes_of(request.scope), serving, images)
            vectors = np.stack([image.prediction.fc7 for image in embedded])
            fingerprint = serving.artifact.fingerprint
            find = partial(index.search, vectors, query.k, where=where, fingerprint=fingerprint, mode=query.mode)
            found = await state.in_index(find)
            break
        except (IndexModelError, IndexSwitchedError, ModelNotLoadedError):
            if query.model is not None or index.searched.fingerprint == searched:
                raise
            # The index switched to another model in the meantime: embed the images with that model.
    results = [SearchResult.of(neighbours, state.settings.root_path) for neighbours in found]
    novelty = novelty_of(state, serving, [image.prediction for image in embedded], query.threshold)
    for result, info in zip(results, novelty, strict=True):
        result.novelty = info
    return SearchAnswer(model=ModelName.of(serving.artifact), mode=found[0].mode, results=results)
