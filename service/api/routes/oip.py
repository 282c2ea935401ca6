"""`/v2/...`: the Open Inference Protocol v2, for clients that speak it already (`tritonclient[http]`, KServe's).

Promises: the same model, queue, limits, deadline and keys as `/v1`; health needs no key; every answer that is no
success is `{"error": ...}`; answers are never compressed; a body is read whatever its Content-Type.
Does not: take shared memory, sequences, priorities; load or unload versions by request of their own.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Request, Response

from model_store.artifact import FEATURES
from model_store.image import CROP
from model_store.runtime.runner import Outputs
from service.api.auth import require
from service.api.deadline import within_limits
from service.api.oip_codec import (
    EXTENSIONS,
    FC7,
    HEADER_LENGTH,
    IMAGE,
    PIXELS,
    PROBABILITIES,
    InferRequest,
    inflate,
    parse,
    write,
)
from service.api.problems import INFERENCE_PATH, STATUS, problem
from service.api.routes.common import WITH_BODY, WORK, StateDep, inference_problems
from service.api.schemas import InferenceAnswer, InferenceModel, InferenceServer, InferenceTensor
from service.api.upload import budget_of, limits_of, receive_raw
from service.errors import NotReadyError
from service.observability.request_log import notes_of
from service.settings import Scope
from service.state import State

router = APIRouter(prefix=INFERENCE_PATH, tags=["open inference protocol"])

_READ = Depends(require(Scope.READ))
_MODEL = "/models/{model}"
_VERSION = "/models/{model}/versions/{version}"
_BINARY_TYPE = "application/octet-stream"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"JSON; with the header {HEADER_LENGTH}, JSON and raw tensors after it. May be gzip or deflate.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            _BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

ModelPath = Annotated[str, Path(description="Name of the model.")]
VersionPath = Annotated[str, Path(description="Number of the version; loaded when it is not yet.")]


@router.get("/health/live", operation_id="v2_live", summary="Is the process alive?", response_class=Response)
async def live() -> Response:
    """Answer as long as the event loop turns."""
    return Response()


@router.get(
    "/health/ready",
    operation_id="v2_ready",
    summary="Can it answer?",
    response_class=Response,
    responses=inference_problems(503),
)
async def ready(state: StateDep) -> Response:
    """Answer 200, or 503 with the reasons."""
    return await _readiness(state)


@router.get(
    _MODEL + "/ready",
    operation_id="v2_model_ready",
    summary="Can this model answer?",
    response_class=Response,
    responses=inference_problems(404, 503),
)
async def model_ready(model: ModelPath, state: StateDep) -> Response:
    """Answer 200, 404 for a model that is not published, or 503 with the reasons."""
    return await _readiness(state, model)


@router.get(
    _VERSION + "/ready",
    operation_id="v2_version_ready",
    summary="Can this version answer?",
    response_class=Response,
    responses=inference_problems(404, 503),
)
async def version_ready(model: ModelPath, version: VersionPath, state: StateDep) -> Response:
    """Answer 200, 404 for a version that is not published, or 503 with the reasons."""
    return await _readiness(state, model, version)


@router.get(
    "",
    operation_id="v2_server",
    summary="Name, version and extensions of the server",
    responses=inference_problems(401, 403),
    dependencies=[_READ],
)
async def server_metadata(request: Request) -> InferenceServer:
    """Name the server."""
    return InferenceServer(name=request.app.title, version=request.app.version, extensions=list(EXTENSIONS))


@router.get(
    _MODEL,
    operation_id="v2_model",
    summary="Inputs and outputs of the model",
    responses=inference_problems(401, 403, 404, 503),
    dependencies=[_READ],
)
async def model_metadata(model: ModelPath, state: StateDep) -> InferenceModel:
    """Describe the tensors. A request brings one of the two inputs."""
    return await _describe(state, model)


@router.get(
    _VERSION,
    operation_id="v2_version",
    summary="Inputs and outputs of the version",
    responses=inference_problems(401, 403, 404, 503),
    dependencies=[_READ],
)
async def version_metadata(model: ModelPath, version: VersionPath, state: StateDep) -> InferenceModel:
    """Describe the tensors. A request brings one of the two inputs."""
    return await _describe(state, model, version)


@router.post(
    _MODEL + "/infer",
    operation_id="v2_infer",
    summary="Probabilities and fc7 of views or pictures",
    response_model=InferenceAnswer,
    responses=inference_problems(*WITH_BODY, 404, 409),
    openapi_extra=_BODY,
    dependencies=[_READ, WORK],
)
async def infer(
    request: Request,
    model: ModelPath,
    state: StateDep,
    length: Annotated[str | None, Header(alias=HEADER_LENGTH)] = None,
) -> Response:
    """Send `pixels` (UINT8 [N,224,224,3], RGB) or `image` (BYTES [N], encoded pictures; in JSON as base64)."""
    return await _infer(request, state, _reference(state, model), length)


@router.post(
    _VERSION + "/infer",
    operation_id="v2_version_infer",
    summary="Probabilities and fc7 of views or pictures, by this version",
    response_model=InferenceAnswer,
    responses=inference_problems(*WITH_BODY, 404, 409),
    openapi_extra=_BODY,
    dependencies=[_READ, WORK],
)
async def version_infer(
    request: Request,
    model: ModelPath,
    version: VersionPath,
    state: StateDep,
    length: Annotated[str | None, Header(alias=HEADER_LENGTH)] = None,
) -> Response:
    """Send `pixels` (UINT8 [N,224,224,3], RGB) or `image` (BYTES [N], encoded pictures; in JSON as base64)."""
    return await _infer(request, state, _reference(state, model, version), length)


async def _infer(request: Request, state: State, reference: str | None, length: str | None) -> Response:
    await state.artifact(reference)  # before the body is read: what is not there needs no upload
    async with receive_raw(request) as body:
        return await within_limits(request, state, _answer(request, state, reference, body, length))


async def _answer(request: Request, state: State, reference: str | None, body: bytes, length: str | None) -> Response:
    limits, notes = limits_of(request), notes_of(request.scope)
    plain = await state.decode(inflate, body, request.headers.get("content-encoding"), limits.bytes)
    with budget_of(request).holding(0 if plain is body else len(plain)):
        async with state.use(reference) as serving:
            artifact = serving.artifact
            wanted: InferRequest = await state.decode(
                lambda: parse(plain, length, most_images=limits.images, classes=len(artifact.labels))
            )
            if wanted.views is not None:
                rows = await state.embedder.embed_views(notes, serving, wanted.views)
            else:
                images = await state.embedder.embed(notes, serving, wanted.pictures, views=wanted.count)
                rows = [image.prediction for image in images]
    outputs = Outputs(np.stack([row.probabilities for row in rows]), np.stack([row.fc7 for row in rows]))
    answer = await state.decode(write, wanted, outputs, artifact.labels, artifact.name, artifact.version)
    if answer.header_length is None:
        return Response(answer.body, media_type="application/json")
    return Response(answer.body, headers={HEADER_LENGTH: str(answer.header_length)}, media_type=_BINARY_TYPE)


def _reference(state: State, model: str, version: str | None = None) -> str | None:
    """Return what the path names: None for the active version, by its model's name alone. Raises NotReadyError."""
    if version is None:
        return None if state.serving().artifact.name == model else model
    return f"{model}:{version}"


async def _readiness(state: State, model: str | None = None, version: str | None = None) -> Response:
    reasons = state.why_not_ready()
    if reasons:
        headers = {"Retry-After": "5"}
        return problem(STATUS[NotReadyError], " ".join(reasons), headers).for_path(INFERENCE_PATH)
    if model is not None:
        await state.artifact(_reference(state, model, version))
    return Response()


async def _describe(state: State, model: str, version: str | None = None) -> InferenceModel:
    artifact = await state.artifact(_reference(state, model, version))
    published = await state.in_index(state.store.list)
    return InferenceModel(
        name=artifact.name,
        versions=[str(other.version) for other in published if other.name == artifact.name],
        platform="onnxruntime_onnx",
        inputs=[
            InferenceTensor(name=PIXELS, datatype="UINT8", shape=[-1, CROP, CROP, 3]),
            InferenceTensor(name=IMAGE, datatype="BYTES", shape=[-1]),
        ],
        outputs=[
            InferenceTensor(name=PROBABILITIES, datatype="FP32", shape=[-1, len(artifact.labels)]),
            InferenceTensor(name=FC7, datatype="FP32", shape=[-1, FEATURES]),
        ],
    )
