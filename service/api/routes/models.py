"""`/v1/models`: list published versions, activate a version, roll back to the previous one."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter

from service.api.routes.common import ADMIN, READ, WORK, StateDep, problems
from service.api.schemas.answers import ModelName
from service.api.schemas.models import ActivationAnswer, ModelInfo, ModelsAnswer
from service.indexing.versions import Activated
from service.state import State

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get(
    "",
    operation_id="list_models",
    summary="List published versions",
    dependencies=[READ],
    responses=problems(401, 403),
)
async def list_models(state: StateDep) -> ModelsAnswer:
    """List all published versions.

    A version activated with `fc7 models activate` is `active`, but it is not `serving` until the service restarts.
    """
    return await state.in_index(_list, state)


@router.post(
    "/rollback",
    operation_id="rollback_model",
    summary="Roll back to the previous version",
    dependencies=[ADMIN, WORK],
    responses=problems(401, 403, 404, 409, 503, 507),
)
async def rollback(state: StateDep) -> ActivationAnswer:
    """Activate the previously active version."""
    return _answer(state, await asyncio.to_thread(state.versions.rollback))


@router.post(
    "/{name}/{version}/activate",
    operation_id="activate_model",
    summary="Activate a version",
    dependencies=[ADMIN, WORK],
    responses=problems(401, 403, 404, 409, 422, 503, 507),
)
async def activate(
    name: str,
    version: Annotated[int, PathParameter(ge=1)],
    state: StateDep,
    force: Annotated[
        bool, Query(description="Activate it even if it is no better than always predicting the same class.")
    ] = False,
) -> ActivationAnswer:
    """Load, verify and warm up a version while the current one answers, then switch without interrupting requests.

    The response is sent after the switch. If any step fails, the current version continues to answer. A version whose
    validation shows nothing better than a constant prediction is rejected, unless `force` is true.
    """
    return _answer(state, await asyncio.to_thread(partial(state.versions.activate, name, version, force=force)))


def _answer(state: State, done: Activated) -> ActivationAnswer:
    searched = state.index().searched.fingerprint == done.model.fingerprint
    return ActivationAnswer(
        model=ModelName.of(done.model),
        previous=None if done.previous is None else ModelName.of_reference(done.previous),
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
                metrics=_without_folders(artifact.manifest.metrics, state.settings.home),
                fingerprint=artifact.fingerprint,
                active=(artifact.name, artifact.version) == reference,
                serving=artifact.id == state.served,
                loaded=artifact.id in loaded,
            )
            for artifact in state.store.list()
        ]
    )


def _without_folders(value: Any, home: Path) -> Any:
    """Replace absolute paths in metrics: by their path below FC7_HOME, or by their last part."""
    if isinstance(value, dict):
        return {name: _without_folders(entry, home) for name, entry in value.items()}
    if not (isinstance(value, str) and Path(value).is_absolute()):
        return value
    path, home = Path(value), home.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else path.name
