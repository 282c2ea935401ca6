"""`/label-studio`: the protocol of Label Studio's ML backends. In Label Studio, add http://HOST:8000/label-studio.

Guarantees: images come from the request, from the index, or from the address in FC7_LABEL_STUDIO_URL.
Out of scope: `train`. A labeled image is used immediately (see `service.api.label_studio.predict`).
References: https://github.com/HumanSignal/label-studio-ml-backend (label_studio_ml/api.py)
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response, Security, status
from fastapi.security import HTTPBasic

from service.api.bounded_json import loads
from service.api.label_studio.client import LabelStudioClient
from service.api.label_studio.config import Control, parse_config
from service.api.label_studio.events import CREATED, DELETED, annotated, removed
from service.api.label_studio.predict import predict, version_of
from service.api.routes.common import WORK, StateDep, problems, within_limits
from service.api.upload import read_body
from service.api_keys import Scope
from service.errors import BodyMalformedError, ParameterError
from service.state import State

_MAX_TASKS: Final = 1000
_BASIC = HTTPBasic(auto_error=False, description="Any user name, and an API key as the password.")
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
_ERRORS: Final = (400, 401, 403, 408, 409, 413, 422, 503, 507)


def _require(needed: Scope) -> Any:
    async def check(request: Request, _basic: Annotated[object, Security(_BASIC)]) -> None:
        request.app.state.keyring.check(request, needed, basic=True)

    return Depends(check)


router = APIRouter(prefix="/label-studio", tags=["label studio"])


@router.get("", operation_id="label_studio_root", summary="Check the backend", include_in_schema=False)
@router.get("/health", operation_id="label_studio_health", summary="Check the backend")
async def health() -> dict[str, str]:
    """Return that the server is up. It needs no key."""
    return {"status": "UP", "model_class": "fc7"}


@router.post(
    "/setup",
    operation_id="label_studio_setup",
    summary="Check a labeling configuration",
    dependencies=[_require(Scope.READ), WORK],
    responses=problems(*_ERRORS),
    openapi_extra=_BODY,
)
async def setup(request: Request, state: StateDep) -> dict[str, str]:
    """Return the version of the model that predicts for this configuration (`schema`)."""
    body = await _read(request, state)
    artifact = await state.artifact(None)
    return {"model_version": version_of(artifact.id, parse_config(body.get("schema")), artifact.labels)}


@router.post(
    "/predict",
    operation_id="label_studio_predict",
    summary="Predict the choices of tasks",
    dependencies=[_require(Scope.READ), WORK],
    responses=problems(*_ERRORS, 504),
    openapi_extra=_BODY,
)
async def predict_tasks(request: Request, state: StateDep) -> dict[str, Any]:
    """Return a prediction for each of the `tasks`. A task whose image cannot be used gets an empty one with `error`."""
    body = await _read(request, state)
    controls, tasks = parse_config(body.get("label_config")), body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise BodyMalformedError("tasks must be a list of objects.")
    if len(tasks) > _MAX_TASKS:
        raise ParameterError("tasks", f"{len(tasks)} tasks", f"at most {_MAX_TASKS}", _MAX_TASKS)
    work = predict(request, state, controls, tasks, _client(state))
    version, results = await within_limits(request, state, work, deadline=False)
    for result in results:
        if "error" in result:
            state.log.warning("label studio task", detail=result["error"])
    return {"results": results, "model_version": version}


@router.post(
    "/webhook",
    operation_id="label_studio_webhook",
    summary="Store the labels of annotations",
    dependencies=[_require(Scope.WRITE), WORK],
    status_code=status.HTTP_201_CREATED,
    responses=problems(*_ERRORS, 504) | {200: {"description": "The event is not one that changes labels."}},
    openapi_extra=_BODY,
)
async def webhook(request: Request, response: Response, state: StateDep) -> dict[str, Any]:
    """Store the choices of created and updated annotations as metadata, and remove those of deleted ones."""
    body = await _read(request, state)
    action = body.get("action")
    if action in CREATED:
        work = annotated(request, state, body, _controls_of(body), _client(state))
        return {"status": "ok", "result": {"keys": await within_limits(request, state, work)}}
    if action in DELETED:
        return {"status": "ok", "result": {"keys": await within_limits(request, state, removed(state, body))}}
    response.status_code = status.HTTP_200_OK
    if action == "START_TRAINING":
        return {"status": "ok", "result": "Labels are used immediately. POST /v1/jobs?kind=head fits the last layer."}
    return {"status": "Unknown event"}


def _controls_of(body: dict[str, Any]) -> list[Control]:
    project = body.get("project")
    return parse_config(project.get("label_config") if isinstance(project, dict) else None)


def _client(state: State) -> LabelStudioClient | None:
    settings = state.settings
    if settings.label_studio_url is None:
        return None
    token = settings.label_studio_token
    return LabelStudioClient(
        settings.label_studio_url,
        None if token is None else token.get_secret_value(),
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.deadline_s,
    )


async def _read(request: Request, state: State) -> dict[str, Any]:
    """Read the JSON object of a request. Raises BodyMalformedError, BodyTooLargeError, BodyTimeoutError."""
    settings = state.settings
    with request.app.state.body_budget.holding(settings.max_body_bytes):
        chunks = [chunk async for chunk in read_body(request, settings.max_body_bytes, settings.upload_timeout_s)]
        try:
            body = loads(b"".join(chunks))
        except ValueError as error:
            raise BodyMalformedError(f"The body {error}.") from None
    if not isinstance(body, dict):
        raise BodyMalformedError(f"The body must be a JSON object, but is a {type(body).__name__}.")
    return body
