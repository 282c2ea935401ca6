"""`POST /v1/embed`: the fc7 vectors of images. `POST /v1/embeddings`: the same in the form of OpenAI's API."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray

from index.records import DIMENSIONS
from model_store.artifact import Artifact
from service.api.bodies.openai import EmbeddingsRequest, parse_embeddings
from service.api.parameters import EmbedQuery, NoQuery
from service.api.routes.common import READ, WITH_BODY, WORK, StateDep, image_body, problems, within_limits
from service.api.routes.fast_route import FastRoute
from service.api.schemas.answers import ModelName
from service.api.schemas.bodies import OPENAI
from service.api.schemas.embeddings import (
    EmbedAnswer,
    EmbedResult,
    OpenAIAnswer,
    OpenAIEmbedding,
    OpenAIUsage,
    encoded,
)
from service.api.upload import media_type, parse_json, receive, receive_raw
from service.errors import BodyTypeError
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(tags=["embed"], dependencies=[READ, WORK], route_class=FastRoute)

_JSON_TYPES = ("", "application/json")


@router.post(
    "/v1/embed",
    operation_id="embed",
    summary="Get the fc7 vectors of images",
    responses=problems(*WITH_BODY, 404, 409),
    openapi_extra=image_body(),
)
async def embed(request: Request, query: Annotated[EmbedQuery, Query()], state: StateDep) -> EmbedAnswer:
    """Return the fc7 vector of each image: 4,096 numbers, none of them negative.

    Send one image as the body, several as multipart parts named `file`, or JSON with data: URIs. Vectors are compared
    by their Euclidean distance. POST /v1/search accepts them.
    """
    await state.artifact(query.model)
    async with receive(request) as body:
        work = _embed(request, state, body.images, query.model, query.views)
        artifact, vectors = await within_limits(request, state, work)
    return EmbedAnswer(
        model=ModelName.of(artifact),
        dimensions=DIMENSIONS,
        results=[EmbedResult(embedding=encoded(vector, query.encoding_format)) for vector in vectors],
    )


@router.post(
    "/v1/embeddings",
    operation_id="openai_embeddings",
    summary="Get the fc7 vectors of images, in the form of OpenAI's API",
    responses=problems(*WITH_BODY, 404, 409),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": OPENAI}}}},
)
async def openai_embeddings(request: Request, query: Annotated[NoQuery, Query()], state: StateDep) -> OpenAIAnswer:
    """Return the fc7 vectors of images for clients of OpenAI's embeddings API; `input` has data: URIs of images.

    Errors are problems (RFC 9457), as everywhere.
    """
    del query
    if (kind := media_type(request)) not in _JSON_TYPES:
        raise BodyTypeError(kind, "Send application/json.")
    async with receive_raw(request) as data:
        wanted: EmbeddingsRequest
        with request.app.state.body_budget.holding(len(data)):  # the decoded images are in memory too
            wanted = await parse_json(data, lambda document: parse_embeddings(document, state.settings.max_images))
            work = _embed(request, state, wanted.images, wanted.model, 1)
            artifact, vectors = await within_limits(request, state, work)
    return OpenAIAnswer(
        object="list",
        data=[
            OpenAIEmbedding(object="embedding", index=number, embedding=encoded(vector, wanted.encoding))
            for number, vector in enumerate(vectors)
        ],
        model=artifact.id,
        usage=OpenAIUsage(prompt_tokens=0, total_tokens=0),
    )


async def _embed(
    request: Request, state: State, images: list[bytes], model: str | None, views: int
) -> tuple[Artifact, list[NDArray[np.float32]]]:
    """Return the version that was used, and the vector of each image."""
    async with state.use(model) as serving:
        embedded = await state.embedder.embed(notes_of(request.scope), serving, images, views=views)
        return serving.artifact, [image.prediction.fc7 for image in embedded]
