"""`/v1/backups`: take, list, verify and delete backups. A restore needs a stopped server: `fc7 backup restore`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response, status

from service import backup
from service.api.parameters import BackupQuery
from service.api.routes.common import ADMIN, WORK, StateDep, in_index_until_gone, problems
from service.api.schemas.backups import BackupInfo, BackupsAnswer
from service.errors import DrainingError
from service.indexing.job import JobInfo, JobKind

router = APIRouter(prefix="/v1/backups", tags=["backups"], dependencies=[WORK, ADMIN])

Name = Annotated[str, Path(description="The name of the backup.")]


@router.post(
    "",
    operation_id="create_backup",
    summary="Take a backup",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(401, 403, 409, 422, 503, 507),
)
async def create_backup(response: Response, query: Annotated[BackupQuery, Query()], state: StateDep) -> JobInfo:
    """Start copying versions, codes and index to a new folder under FC7_HOME/backups. Poll the returned job.

    The backup has the name of the job. Jobs run one after the other, so it waits for those before it. Requests are
    answered meanwhile. An index on Milvus is not copied. To restore a backup, stop the server, and run
    `fc7 backup restore`.
    """
    parameters = query.model_dump(mode="json", exclude_unset=True)
    job = await state.in_index(state.jobs.accept, JobKind.BACKUP, parameters)
    response.headers["Location"] = f"{state.settings.root_path}/v1/jobs/{job.id}"
    return job


@router.get("", operation_id="list_backups", summary="List backups", responses=problems(401, 403, 503))
async def list_backups(state: StateDep) -> BackupsAnswer:
    """List the complete backups under FC7_HOME/backups, oldest first. Those of a newer format are left out."""
    found = await state.in_index(backup.list_backups, state.settings.home / backup.FOLDER)
    return BackupsAnswer(backups=[BackupInfo.of(path, manifest) for path, manifest in found])


@router.post(
    "/{name}/verify",
    operation_id="verify_backup",
    summary="Verify a backup",
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def verify_backup(name: Name, request: Request, state: StateDep) -> BackupInfo:
    """Compare every file of a backup with its checksum.

    The answer is 409 with the names of the damaged files if there are any. There is no deadline. Verification stops if
    the client disconnects or the server shuts down.
    """

    def verify(stopped: Callable[[], bool]) -> BackupInfo:
        def advance(_step: str, _done: int, _total: int) -> None:
            if stopped():
                raise DrainingError

        path = backup.find_backup(state.settings.home / backup.FOLDER, name)
        return BackupInfo.of(path, backup.verify_backup(path, advance=advance))

    return await in_index_until_gone(request, state, verify)


@router.delete(
    "/{name}",
    operation_id="delete_backup",
    summary="Delete a backup",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def delete_backup(name: Name, state: StateDep) -> None:
    """Delete a backup, also one that this fc7 cannot read."""

    def delete() -> None:
        backup.remove_backup(backup.find_backup(state.settings.home / backup.FOLDER, name))

    await state.in_index(delete)
