"""`/v1/models`: which versions are published, and which one answers; activate another one, go back."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path

from service.api.auth import require
from service.api.routes.common import WORK, StateDep, problems
from service.api.schemas import ActivationAnswer, ModelInfo, ModelName, ModelsAnswer
from service.inference.activation import Activated
from service.settings import Scope
from service.state import State

router = APIRouter(prefix="/v1/models", tags=["models"])

_READ, _ADMIN = Depends(require(Scope.READ)), Depends(require(Scope.ADMIN))


@router.get(
    "",
    operation_id="list_models",
    summary="The published versions",
    dependencies=[_READ],
    responses=problems(401, 403),
)
async def list_models(state: StateDep) -> ModelsAnswer:
    """List all versions on disk. One that `fc7 models activate` chose is `active`, but not `serving` before a start."""
    return await state.in_index(_list, state)


@router.post(
    "/rollback",
    operation_id="rollback_model",
    summary="Serve the version before again",
    dependencies=[_ADMIN, WORK],
    responses=problems(401, 403, 404, 409, 503),
)
async def rollback(state: StateDep) -> ActivationAnswer:
    """Switch to the version that was active before, as an activation does."""
    return _answer(state, await asyncio.to_thread(state.activator.rollback))


@router.post(
    "/{name}/{version}/activate",
    operation_id="activate_model",
    summary="Serve another version, without losing a request",
    dependencies=[_ADMIN, WORK],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def activate(name: str, version: Annotated[int, Path(ge=1)], state: StateDep) -> ActivationAnswer:
    """Load, verify and warm up the version beside the one that answers, then switch between two requests.

    The answer comes when it is done. If any step fails, the one before goes on answering.
    """
    return _answer(state, await asyncio.to_thread(state.activator.activate, name, version))


def _answer(state: State, done: Activated) -> ActivationAnswer:
    searched = state.index().searched.fingerprint == done.model.fingerprint
    return ActivationAnswer(
        model=ModelName.of(done.model),
        previous=None if done.before is None else ModelName.of_reference(done.before),
        seconds=round(done.seconds, 3),
        index_status="ready" if searched else "migrating",
    )


def _list(state: State) -> ModelsAnswer:
    active, loaded = state.store.active(), state.models.ids()
    reference = None if active is None else (active.active.name, active.active.version)
    return ModelsAnswer(
        models=[
            ModelInfo(
                name=artifact.name,
                version=artifact.version,
                created=artifact.manifest.created,
                architecture=artifact.manifest.architecture,
                classes=list(artifact.labels),
                metrics=artifact.manifest.metrics,
                fingerprint=artifact.fingerprint,
                active=(artifact.name, artifact.version) == reference,
                serving=artifact.id == state.served,
                loaded=artifact.id in loaded,
            )
            for artifact in state.store.list()
        ]
    )
