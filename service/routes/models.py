"""`GET /v1/models`: which versions are published, and which one answers."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.routes.common import StateDep, problems
from service.schemas import ModelInfo, ModelsAnswer
from service.security import require
from service.settings import Scope
from service.state import State

router = APIRouter(tags=["models"], dependencies=[Depends(require(Scope.READ))])


@router.get("/v1/models", operation_id="list_models", summary="The published versions", responses=problems(401, 403))
async def list_models(state: StateDep) -> ModelsAnswer:
    """List all versions on disk; one that was activated after the start is `active`, but not yet `serving`."""
    return await state.in_index(_list, state)


def _list(state: State) -> ModelsAnswer:
    active = state.store.active()
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
            )
            for artifact in state.store.list()
        ]
    )
