"""`POST /v1/classify`: the most probable classes of each image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from model_store.artifact import Artifact
from service.api.novelty import novelty_of
from service.api.parameters import ClassifyQuery
from service.api.routes.common import READ, WITH_BODY, WORK, StateDep, image_body, problems, within_limits
from service.api.routes.fast_route import FastRoute
from service.api.schemas.answers import ClassifyAnswer, ClassifyResult, ModelName
from service.api.upload import receive
from service.errors import ParameterError
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(tags=["classify"], dependencies=[READ, WORK], route_class=FastRoute)

_DEFAULT_K = 5


@router.post(
    "/v1/classify",
    operation_id="classify",
    summary="Classify images",
    responses=problems(*WITH_BODY, 404, 409),
    openapi_extra=image_body(),
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()], state: StateDep) -> ClassifyAnswer:
    """Return the most probable classes of each image.

    Send one image as the body, or several as multipart parts named `file`.
    """
    _check_k(query.k, await state.artifact(query.model))
    async with receive(request) as body:
        return await within_limits(request, state, _classify(request, state, query, body.images))


async def _classify(request: Request, state: State, query: ClassifyQuery, images: list[bytes]) -> ClassifyAnswer:
    async with state.use(query.model) as serving:
        artifact = serving.artifact
        k = _check_k(query.k, artifact)  # checked again: another version may have been activated while the body arrived
        embedded = await state.embedder.embed(notes_of(request.scope), serving, images, views=query.views)
        predictions = [image.prediction for image in embedded]
        novelty = novelty_of(state, serving, predictions, query.threshold)
        return ClassifyAnswer(
            model=ModelName.of(artifact),
            results=[
                ClassifyResult.of(prediction.probabilities, artifact.labels, k, found)
                for prediction, found in zip(predictions, novelty, strict=True)
            ],
        )


def _check_k(k: int | None, artifact: Artifact) -> int:
    classes = len(artifact.labels)
    k = min(_DEFAULT_K, classes) if k is None else k
    if not 1 <= k <= classes:
        raise ParameterError("k", k, f"a whole number from 1 to {classes}, the classes of {artifact.id}", classes)
    return k
