"""`POST /v1/classify`: what is on each image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.answers import embed, within_limits
from service.bodies import receive
from service.errors import ParameterError
from service.routes.common import WITH_BODY, WORK, StateDep, image_body, problems
from service.schemas import ClassifyAnswer, ClassifyQuery, ClassifyResult, ModelName
from service.security import require
from service.settings import Scope

router = APIRouter(tags=["classify"], dependencies=[Depends(require(Scope.READ)), WORK])

_DEFAULT_K = 5


@router.post(
    "/v1/classify",
    operation_id="classify",
    summary="Name the most probable classes of each image",
    responses=problems(*WITH_BODY),
    openapi_extra=image_body(),
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()], state: StateDep) -> ClassifyAnswer:
    """Send one image as the body, or several as multipart parts named `file`."""
    artifact = state.serving().artifact
    classes = len(artifact.labels)
    k = min(_DEFAULT_K, classes) if query.k is None else query.k
    if not 1 <= k <= classes:
        raise ParameterError("k", k, f"a whole number from 1 to {classes}, the classes of {artifact.id}", classes)
    async with receive(request, state.body_limits, state.budget) as body:
        embedded = await within_limits(request, state, embed(request, state, body.uploads, views=query.views))
    return ClassifyAnswer(
        model=ModelName.of(artifact),
        results=[ClassifyResult.of(image.row, artifact.labels, k) for image in embedded],
    )
