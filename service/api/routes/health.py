"""`/livez`, `/readyz` and `/metrics`, for supervisors, load balancers and Prometheus. They require no API key."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.problems import STATUS, problem, without_folders
from service.api.routes.common import READY_RETRY, StateDep, problems
from service.api.schemas.answers import ModelName
from service.api.schemas.models import Alive, Ready
from service.errors import NotReadyError

router = APIRouter(tags=["health"])


@router.get("/livez", operation_id="livez", summary="Check that the process is alive")
async def livez() -> Alive:
    """Return 200 as long as the event loop runs."""
    return Alive(status="alive")


@router.get("/readyz", operation_id="readyz", summary="Check readiness", response_model=Ready, responses=problems(503))
async def readyz(state: StateDep) -> Ready | JSONResponse:
    """Return 200, or 503 with the reasons and how to fix them."""
    reasons = [without_folders(reason, state.settings) for reason in state.why_not_ready()]
    if reasons:
        return problem("/readyz", STATUS[NotReadyError], " ".join(reasons), READY_RETRY, reasons=reasons)
    serving = state.serving()
    return Ready(
        status="ready",
        model=ModelName.of(serving.artifact),
        device=serving.runner.device,
        notes=[without_folders(note, state.settings) for note in state.notes()],
    )


@router.get("/metrics", operation_id="metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(state: StateDep) -> Response:
    """Return all metrics in the Prometheus text format."""
    state.metrics.ready.set(not state.why_not_ready())
    await state.in_index(state.measure_index)
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)
