"""`POST /v1/classify`: what is on each image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from model_store.artifact import Artifact
from service.api.auth import require
from service.api.deadline import within_limits
from service.api.fast_route import FastRoute
from service.api.parameters import ClassifyQuery
from service.api.routes.common import WITH_BODY, WORK, StateDep, image_body, problems
from service.api.schemas import ClassifyAnswer, ClassifyResult, ModelName
from service.api.upload import Upload, receive
from service.errors import ParameterError
from service.inference.embed import embed
from service.settings import Scope
from service.state import State

router = APIRouter(tags=["classify"], dependencies=[Depends(require(Scope.READ)), WORK], route_class=FastRoute)

_DEFAULT_K = 5


@router.post(
    "/v1/classify",
    operation_id="classify",
    summary="Name the most probable classes of each image",
    responses=problems(*WITH_BODY, 404, 409),
    openapi_extra=image_body(),
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()], state: StateDep) -> ClassifyAnswer:
    """Send one image as the body, or several as multipart parts named `file`."""
    _check_k(query.k, await state.artifact(query.model))
    async with receive(request, state.body_limits, state.budget) as body:
        return await within_limits(request, state, _classify(request, state, query, body.uploads))


async def _classify(request: Request, state: State, query: ClassifyQuery, uploads: list[Upload]) -> ClassifyAnswer:
    async with state.use(query.model) as serving:
        artifact = serving.artifact
        k = _check_k(query.k, artifact)  # again: another version may have been activated while the body came
        embedded = await embed(request, state, serving, uploads, views=query.views)
        return ClassifyAnswer(
            model=ModelName.of(artifact),
            results=[ClassifyResult.of(image.row, artifact.labels, k) for image in embedded],
        )


def _check_k(k: int | None, artifact: Artifact) -> int:
    classes = len(artifact.labels)
    k = min(_DEFAULT_K, classes) if k is None else k
    if not 1 <= k <= classes:
        raise ParameterError("k", k, f"a whole number from 1 to {classes}, the classes of {artifact.id}", classes)
    return k
