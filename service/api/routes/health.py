"""`/livez`, `/readyz`, `/metrics`: for supervisors, load balancers and Prometheus. They need no key."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.problems import STATUS, problem
from service.api.routes.common import StateDep, problems
from service.api.schemas import Alive, ModelName, Ready
from service.errors import NotReadyError

router = APIRouter(tags=["health"])

_SOON_S = "5"


@router.get("/livez", operation_id="livez", summary="Is the process alive?")
async def livez() -> Alive:
    """Answer as long as the event loop turns."""
    return Alive(status="alive")


@router.get("/readyz", operation_id="readyz", summary="Can it answer?", response_model=Ready, responses=problems(503))
async def readyz(state: StateDep) -> Ready | JSONResponse:
    """Answer 200, or 503 with the reasons and what to do about them."""
    reasons = state.why_not_ready()
    if reasons:
        return problem(STATUS[NotReadyError], " ".join(reasons), {"Retry-After": _SOON_S}, reasons=reasons)
    serving = state.serving()
    return Ready(
        status="ready", model=ModelName.of(serving.artifact), device=serving.runner.device, notes=state.notes()
    )


@router.get("/metrics", operation_id="metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(state: StateDep) -> Response:
    """Render the counters; the index is asked for its sizes."""
    state.metrics.ready.set(not state.why_not_ready())
    await state.in_index(state.measure_index)
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)
