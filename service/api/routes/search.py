"""`POST /v1/search`: the indexed images that are most similar to images, to vectors, or to several examples."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray

from index.filters import Where, parse_where
from index.interface import Answers, ImageIndex
from service.api.bodies.body import Body
from service.api.bodies.json_images import NO_URLS, is_url
from service.api.bodies.queries import Queries
from service.api.index_switch import with_searched_model
from service.api.novelty import novelty_of
from service.api.parameters import DEFAULT_CLASSES, ModelSearchQuery
from service.api.routes.common import (
    READ,
    WITH_BODY,
    WORK,
    StateDep,
    image_body,
    problems,
    within_limits,
)
from service.api.routes.fast_route import FastRoute
from service.api.schemas.answers import ModelName, Prediction, SearchAnswer, SearchResult
from service.api.schemas.bodies import SEARCH
from service.api.upload import receive
from service.errors import BodyMalformedError, ParameterError
from service.inference.embed import Embedded
from service.inference.model_pool import Serving
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(tags=["search"], dependencies=[READ, WORK], route_class=FastRoute)


@router.post(
    "/v1/search",
    operation_id="search",
    summary="Find similar indexed images",
    responses=problems(*WITH_BODY, 404, 409),
    openapi_extra=image_body(json=SEARCH, examples=True),
    response_model_exclude_unset=True,
)
async def search(request: Request, query: Annotated[ModelSearchQuery, Query()], state: StateDep) -> SearchAnswer:
    """Return the most similar indexed images of each image, nearest first.

    Send one image as the body, or several as multipart parts named `file`, or JSON with images, with vectors, or with
    positive and negative examples of one search. Examples are images, keys of indexed images, or vectors; as multipart,
    parts named `positive` and `negative` with a file or with a key as text. The search is for 2 x mean(positive) -
    mean(negative), or for the mean of the positive examples alone, and leaves out the images whose keys are given.
    """
    state.index()
    where = parse_where(query.where)
    await state.artifact(query.model)
    async with receive(request, search=True) as body:
        return await within_limits(request, state, _search(request, state, body, query, where))


async def _search(
    request: Request, state: State, body: Body, query: ModelSearchQuery, where: Where | None
) -> SearchAnswer:
    index, queries = state.index(), Queries.of(body)
    await _check(state, queries, query)
    images = queries.images

    async def attempt(use: AbstractAsyncContextManager[Serving]) -> tuple[Serving, list[Embedded], Answers]:
        async with use as serving:
            embedded = await state.embedder.embed(notes_of(request.scope), serving, images) if images else []
        find = partial(_find, index, queries, query, where=where, fingerprint=serving.artifact.fingerprint)
        return serving, embedded, await state.in_index(find, [image.prediction.fc7 for image in embedded])

    serving, embedded, found = await with_searched_model(state, query.model, attempt)
    results = [SearchResult.of(neighbours, state.settings.root_path) for neighbours in found]
    if embedded and not queries.combined:
        novelty = novelty_of(state, serving, [image.prediction for image in embedded], query.threshold)
        for result, info in zip(results, novelty, strict=True):
            if "novelty" in query.include:
                result.novelty = info
    if "classes" in query.include:
        labels = serving.artifact.labels
        for result, image in zip(results, embedded, strict=True):
            result.predictions = Prediction.best(
                image.prediction.probabilities, labels, min(DEFAULT_CLASSES, len(labels))
            )
    return SearchAnswer(model=ModelName.of(serving.artifact), mode=found[0].mode, results=results)


async def _check(state: State, queries: Queries, query: ModelSearchQuery) -> None:
    """Reject what cannot be answered before a model is loaded or run.

    Raises ParameterError, IndexModelError, ModeUnavailableError.
    """
    if queries.has_vectors and query.model is None:
        expected = "NAME:VERSION of the model that computed the vectors, which POST /v1/embed returns"
        raise ParameterError("model", "(none)", expected)
    if "classes" in query.include and (queries.combined or queries.has_vectors):
        expected = "novelty or nothing: classes are predicted for images, not for vectors or combined examples"
        raise ParameterError("include", ",".join(query.include), expected)
    if query.mode is not None or query.model is not None:
        fingerprint = None if query.model is None else (await state.artifact(query.model)).fingerprint
        await state.in_index(partial(state.index().mode, query.mode, fingerprint=fingerprint))


def _find(
    index: ImageIndex,
    queries: Queries,
    query: ModelSearchQuery,
    images: list[NDArray[np.float32]],
    *,
    where: Where | None,
    fingerprint: str,
) -> Answers:
    """Return what each search finds. images: the vectors of the images."""
    keys = queries.keys
    for key in keys:
        if is_url(key) and not index.contains(key):
            raise BodyMalformedError(f"The example {key[:80]!a} {NO_URLS}.")
    vectors = queries.vectors(images, index.vectors(keys, fingerprint=fingerprint) if keys else {})
    return index.search(
        vectors,
        query.k,
        exclude=keys,
        where=where,
        fingerprint=fingerprint,
        mode=query.mode,
        max_distance=query.max_distance,
    )
