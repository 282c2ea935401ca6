"""`POST /v1/explain`: what in an image speaks for a class, or makes it similar to an indexed image; and `explain=true`.

Guarantees: explained images share the queue, its limits and the deadlines with all other images.
Out of scope: drawing (service/inference/heat_map.py).
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from model_store.artifact import Artifact
from model_store.image import views
from model_store.runtime.explainer import Target, require_explainable
from service.api.index_switch import with_searched_model
from service.api.parameters import ExplainQuery
from service.api.routes.common import READ, WITH_BODY, WORK, StateDep, image_body, problems, within_limits
from service.api.schemas.answers import ModelName
from service.api.schemas.explanations import DrawnExplanation, Explanation, data_uri
from service.api.upload import receive
from service.errors import ParameterError
from service.inference.admission import ExplainTask
from service.inference.embed import Embedded
from service.inference.errors import OneImageError, VectorNotFoundError
from service.inference.explaining import find_class, is_same_picture
from service.inference.heat_map import to_grid, to_png
from service.inference.model_pool import Serving
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(tags=["explain"], dependencies=[READ, WORK])


class ExplainAnswer(BaseModel):
    """The explanation of one image."""

    model: ModelName
    explanation: Explanation


_PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "/v1/explain",
    operation_id="explain",
    summary="Explain an answer with a heat map",
    response_class=Response,
    response_model=None,
    responses={
        200: {"description": "The heat map.", "model": ExplainAnswer, "content": _PNG},
        **problems(*WITH_BODY, 404, 409),
    },
    openapi_extra=image_body(many=False),
)
async def explain(request: Request, query: Annotated[ExplainQuery, Query()], state: StateDep) -> Response:
    """Show which parts of an image speak for a class, by default the most probable one (Grad-CAM at conv5).

    With `near`, show which parts make it similar to an indexed image. Send one image. The answer is a PNG, or the grid
    of values as JSON. The first request to a version loads its graph for explanations.
    """
    if query.class_ is not None and query.near is not None:
        raise ParameterError(
            "near", query.near, "a request without class, because a heat map explains one or the other"
        )
    artifact = await state.artifact(query.model)
    if query.near is not None:
        state.index()
    else:
        require_explainable(artifact)
        if query.class_ is not None:
            find_class(artifact.labels, query.class_, artifact.id)
    async with receive(request) as body:
        if len(body.images) > 1:
            raise OneImageError(1)
        work = _explain_class if query.near is None else _explain_near
        return await within_limits(request, state, work(request, state, query, body.images[0]))


async def _explain_class(request: Request, state: State, query: ExplainQuery, data: bytes) -> Response:
    async with state.use(query.model) as serving:
        artifact = serving.artifact
        index = None if query.class_ is None else find_class(artifact.labels, query.class_, artifact.id)
        embedded = await _run(request, state, serving, data, Target(index))
        return await _answer(state, query, artifact, embedded)


async def _explain_near(request: Request, state: State, query: ExplainQuery, data: bytes) -> Response:
    index, key = state.index(), query.near or ""

    async def attempt(use: AbstractAsyncContextManager[Serving]) -> Response:
        async with use as serving:
            artifact = serving.artifact
            find = partial(index.vectors, [key], fingerprint=artifact.fingerprint)
            vectors = await state.in_index(find)
            if key not in vectors:
                raise VectorNotFoundError(key, artifact.embedder)
            near = vectors[key].astype(np.float32)
            embedded = await _run(request, state, serving, data, Target(near=near))
            return await _answer(state, query, artifact, embedded, near)

    return await with_searched_model(state, query.model, attempt)


async def _run(request: Request, state: State, serving: Serving, data: bytes, target: Target) -> Embedded:
    task = await explain_task(serving, target)
    [embedded] = await state.embedder.embed(notes_of(request.scope), serving, [data], explain=task)
    return embedded


async def explain_task(serving: Serving, target: Target) -> ExplainTask:
    """Return the task for `Embedder.embed`, after loading the graph for explanations if it is not in memory."""
    explainer = serving.explanations.loaded
    if explainer is None:
        explainer = await asyncio.to_thread(serving.explanations.load)
    return ExplainTask(explainer, target)


async def _answer(
    state: State, query: ExplainQuery, artifact: Artifact, embedded: Embedded, near: NDArray[np.float32] | None = None
) -> Response:
    index, heat = _heat(embedded)
    distance = None
    if near is not None:
        fc7 = embedded.prediction.fc7
        distance = float(np.linalg.norm(fc7 - near))
        if is_same_picture(fc7, near):
            heat = np.zeros_like(heat)
    label = None if near is not None else artifact.labels[index]
    if query.format == "json":
        explanation = Explanation(
            class_=label,
            index=None if label is None else index,
            near=query.near,
            distance=distance,
            grid=to_grid(heat),
        )
        content = ExplainAnswer(model=ModelName.of(artifact), explanation=explanation)
        return Response(content.model_dump_json(by_alias=True), media_type="application/json")
    pixels = views(embedded.prepared.pixels)[0] if query.overlay else None
    description = f"{artifact.id}: {f'near {query.near}' if label is None else label}"
    png = await state.decode(to_png, heat, pixels, description)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


def _heat(embedded: Embedded) -> tuple[int, NDArray[np.float32]]:
    if embedded.prediction.heat is None:
        raise RuntimeError("The image was run without a task to explain.")
    return embedded.prediction.heat


async def draw(state: State, artifact: Artifact, embedded: Embedded) -> DrawnExplanation:
    """Return the explanation of an image that was run with a task, for the answer of `explain=true`."""
    index, heat = _heat(embedded)
    label = artifact.labels[index]
    png = await state.decode(to_png, heat, views(embedded.prepared.pixels)[0], f"{artifact.id}: {label}")
    return DrawnExplanation(class_=label, index=index, grid=to_grid(heat), image=data_uri(png))
