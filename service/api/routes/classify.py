"""`POST /v1/classify`: the most probable classes of each image, by the network or by its neighbors in the index."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from model_store.artifact import Artifact
from model_store.runtime.explainer import Target, require_explainable
from service.api.neighbours import check_query, classify_by_neighbours
from service.api.novelty import novelty_of
from service.api.parameters import DEFAULT_CLASSES, ClassifyQuery
from service.api.routes.common import READ, WITH_BODY, WORK, StateDep, image_body, problems, within_limits
from service.api.routes.explain import draw, explain_task
from service.api.routes.fast_route import FastRoute
from service.api.schemas.answers import ClassifyAnswer, ClassifyResult, ModelName
from service.api.upload import receive
from service.errors import ParameterError
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(tags=["classify"], dependencies=[READ, WORK], route_class=FastRoute)


@router.post(
    "/v1/classify",
    operation_id="classify",
    summary="Classify images",
    responses=problems(*WITH_BODY, 404, 409),
    openapi_extra=image_body(),
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()], state: StateDep) -> ClassifyAnswer:
    """Return the most probable classes of each image, by the network or by the labels of similar indexed images.

    Send one image as the body, or several as multipart parts named `file`.
    """
    artifact = await state.artifact(query.model)
    if query.by == "neighbours":
        check_query(query, state)
    else:
        _check_k(query.k, artifact)
    if query.explain:
        if query.views != 1:
            raise ParameterError("views", query.views, "1 with explain=true, because a heat map belongs to one crop")
        if query.by == "neighbours":
            raise ParameterError("by", query.by, "network with explain=true; POST /v1/explain explains neighbors")
        require_explainable(artifact)
    async with receive(request) as body:
        return await within_limits(request, state, _classify(request, state, query, body.images))


async def _classify(request: Request, state: State, query: ClassifyQuery, images: list[bytes]) -> ClassifyAnswer:
    if query.by == "neighbours":
        return await classify_by_neighbours(request, state, query, images)
    async with state.use(query.model) as serving:
        artifact = serving.artifact
        k = _check_k(query.k, artifact)  # checked again: another version may have been activated while the body arrived
        explain = await explain_task(serving, Target()) if query.explain else None
        embedded = await state.embedder.embed(
            notes_of(request.scope), serving, images, views=query.views, explain=explain
        )
        predictions = [image.prediction for image in embedded]
        novelty = novelty_of(state, serving, predictions, query.threshold)
        results = [
            ClassifyResult.of(prediction.probabilities, artifact.labels, k, found)
            for prediction, found in zip(predictions, novelty, strict=True)
        ]
        if explain is not None:
            for result, image in zip(results, embedded, strict=True):
                result.explanation = await draw(state, artifact, image)
        return ClassifyAnswer(model=ModelName.of(artifact), results=results)


def _check_k(k: int | None, artifact: Artifact) -> int:
    classes = len(artifact.labels)
    k = min(DEFAULT_CLASSES, classes) if k is None else k
    if not 1 <= k <= classes:
        raise ParameterError("k", k, f"a whole number from 1 to {classes}, the classes of {artifact.id}", classes)
    return k
