"""`/v2/...`: the Open Inference Protocol v2, for clients such as `tritonclient[http]` and KServe's.

Guarantees: requests use the same model, queue, limits, deadline and keys as `/v1`. The health paths require no key. All
error responses are `{"error": ...}`. Responses are never compressed. A body is read whatever its Content-Type.
Out of scope: shared memory, sequences, priorities, loading and unloading versions explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Request, Response, status

from model_store.image import CROP
from model_store.manifest import FEATURES
from model_store.novelty.reference import reference_file
from service.api import oip_codec as codec
from service.api.inflate import inflate
from service.api.novelty import novelty_of
from service.api.problems import INFERENCE_PATH, STATUS, problem, without_folders
from service.api.routes.common import READ, READY_RETRY, WITH_BODY, WORK, StateDep, inference_problems, within_limits
from service.api.schemas.inference import InferenceAnswer, InferenceModel, InferenceServer, InferenceTensor
from service.api.upload import BodyBudget, receive_raw
from service.errors import NotReadyError
from service.observability.request_log import notes_of
from service.state import State

router = APIRouter(prefix=INFERENCE_PATH, tags=["open inference protocol"])

_BINARY_TYPE = "application/octet-stream"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"JSON or, with the header {codec.HEADER_LENGTH}, JSON followed by raw tensors. "
        "The body may be compressed with gzip or deflate.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            _BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
ModelPath = Annotated[str, Path(description="Name of the model.")]


async def _version(version: Annotated[str, Path(description="Number of the version. It is loaded on demand.")]) -> None:
    """Dependency: describe the version in the OpenAPI document. `_reference` reads it from the path."""


def _model_route(
    method: str, path: str, ids: tuple[str, str], summary: str, dependencies: Sequence[Any] = (), **options: Any
) -> Callable[[_Endpoint], _Endpoint]:
    """Decorator: add an endpoint for a model and for one of its versions. `ids` are the operation IDs of the two."""

    def add(endpoint: _Endpoint) -> _Endpoint:
        for prefix, noun, operation, extra in (
            ("/models/{model}/versions/{version}", "version", ids[1], [Depends(_version)]),
            ("/models/{model}", "model", ids[0], []),
        ):
            router.add_api_route(
                prefix + path,
                endpoint,
                methods=[method],
                operation_id=operation,
                summary=summary.format(noun),
                dependencies=[*dependencies, *extra],
                **options,
            )
        return endpoint

    return add


@router.get("/health/live", operation_id="v2_live", summary="Check that the process is alive", response_class=Response)
async def live() -> Response:
    """Return 200 as long as the event loop runs."""
    return Response()


@router.get(
    "/health/ready",
    operation_id="v2_ready",
    summary="Check the readiness of the server",
    response_class=Response,
    responses=inference_problems(503),
)
async def ready(request: Request, state: StateDep) -> Response:
    """Return 200, or 503 with the reasons."""
    reasons = state.why_not_ready()
    if reasons:
        detail = without_folders(" ".join(reasons), state.settings)
        return problem(request.scope["path"], STATUS[NotReadyError], detail, READY_RETRY)
    return Response()


@_model_route(
    "GET",
    "/ready",
    ("v2_model_ready", "v2_version_ready"),
    "Check the readiness of a {}",
    response_class=Response,
    responses=inference_problems(404, 503),
)
async def model_ready(request: Request, model: ModelPath, state: StateDep) -> Response:
    """Return 200, 404 if the model or version is not published, or 503 with the reasons."""
    answer = await ready(request, state)
    if answer.status_code == status.HTTP_200_OK:
        await state.artifact(_reference(request, state, model))
    return answer


@router.get(
    "",
    operation_id="v2_server",
    summary="Get the metadata of the server",
    responses=inference_problems(401, 403),
    dependencies=[READ],
)
async def server_metadata(request: Request) -> InferenceServer:
    """Return the name, the version and the supported extensions of the server."""
    return InferenceServer(name=request.app.title, version=request.app.version, extensions=list(codec.EXTENSIONS))


@_model_route(
    "GET",
    "",
    ("v2_model", "v2_version"),
    "Get the inputs and outputs of a {}",
    responses=inference_problems(401, 403, 404, 503),
    dependencies=[READ],
)
async def model_metadata(request: Request, model: ModelPath, state: StateDep) -> InferenceModel:
    """Return the names, types and shapes of the tensors. A request has one of the two inputs."""
    artifact = await state.artifact(_reference(request, state, model))
    novelty = [InferenceTensor(name=codec.NOVELTY, datatype="FP32", shape=[-1, 3])]
    published = await state.in_index(state.store.list)
    return InferenceModel(
        name=artifact.name,
        versions=[str(other.version) for other in published if other.name == artifact.name],
        platform="onnxruntime_onnx",
        inputs=[
            InferenceTensor(name=codec.PIXELS, datatype="UINT8", shape=[-1, CROP, CROP, 3]),
            InferenceTensor(name=codec.IMAGE, datatype="BYTES", shape=[-1]),
        ],
        outputs=[
            InferenceTensor(name=codec.PROBABILITIES, datatype="FP32", shape=[-1, len(artifact.labels)]),
            InferenceTensor(name=codec.FC7, datatype="FP32", shape=[-1, FEATURES]),
            *(novelty if reference_file(artifact) else []),
        ],
    )


@_model_route(
    "POST",
    "/infer",
    ("v2_infer", "v2_version_infer"),
    "Run inference with a {}",
    response_model=InferenceAnswer,
    responses=inference_problems(*WITH_BODY, 404, 409),
    openapi_extra=_BODY,
    dependencies=[READ, WORK],
)
async def infer(
    request: Request,
    model: ModelPath,
    state: StateDep,
    length: Annotated[str | None, Header(alias=codec.HEADER_LENGTH)] = None,
) -> Response:
    """Return probabilities and fc7 features; if it is requested, also the novelty of each image.

    Send the input `pixels` (UINT8 [N,224,224,3], RGB) or `image` (BYTES [N], encoded images; in JSON as base64).
    """
    reference = _reference(request, state, model)
    await state.artifact(reference)  # reject an unknown model before the body is read
    async with receive_raw(request) as body:
        return await within_limits(request, state, _infer(request, state, reference, body, length))


async def _infer(request: Request, state: State, reference: str | None, body: bytes, length: str | None) -> Response:
    settings, notes = state.settings, notes_of(request.scope)
    budget: BodyBudget = request.app.state.body_budget
    encoding = request.headers.get("content-encoding")
    plain = await state.decode(inflate, body, encoding, settings.max_body_bytes)
    with budget.holding(0 if plain is body else len(plain)):
        async with state.use(reference) as serving:
            artifact = serving.artifact
            model = codec.Abilities(len(artifact.labels), serving.reference is not None)
            infer_request = await state.decode(codec.parse, plain, length, settings.max_images, model)
            if infer_request.views is not None:
                predictions = await state.embedder.embed_views(notes, serving, infer_request.views)
            else:
                views = infer_request.view_count
                embedded = await state.embedder.embed(notes, serving, infer_request.images, views=views)
                predictions = [image.prediction for image in embedded]
            novelty = novelty_of(state, serving, predictions, infer_request.threshold)
    outputs = {
        codec.PROBABILITIES: np.stack([prediction.probabilities for prediction in predictions]),
        codec.FC7: np.stack([prediction.fc7 for prediction in predictions]),
        codec.NOVELTY: np.array(
            [[info.distance, info.percentile, info.unknown] for info in novelty if info is not None], np.float32
        ),
    }
    answer, header_length = await state.decode(codec.write, infer_request, outputs, artifact)
    if header_length is None:
        return Response(answer, media_type="application/json")
    return Response(answer, headers={codec.HEADER_LENGTH: str(header_length)}, media_type=_BINARY_TYPE)


def _reference(request: Request, state: State, model: str) -> str | None:
    """Return the reference of the version that the path names; None for the active one, named by its model alone.

    Raises NotReadyError.
    """
    version = request.path_params.get("version")
    if version is None:
        return None if state.serving().artifact.name == model else model
    return f"{model}:{version}"
