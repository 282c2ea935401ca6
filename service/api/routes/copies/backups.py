"""`/v1/backups`: take, list, verify, download and delete backups.

A restore needs a stopped server: `fc7 backup restore`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response, status
from fastapi.responses import StreamingResponse

from model_store.durable import sha256_of
from service import backup
from service.api.downloads.links import key_or_link, link_to
from service.api.downloads.tar_stream import DOWNLOAD, TarFolder, tar_response
from service.api.parameters import BackupQuery
from service.api.routes.common import ADMIN, WORK, StateDep, ends_if, in_index_until_gone, problems
from service.api.schemas.backups import BackupInfo, BackupsAnswer, DownloadLink
from service.indexing.job import JobInfo, JobKind
from service.state import State

router = APIRouter(prefix="/v1/backups", tags=["backups"], dependencies=[WORK])

Name = Annotated[str, Path(description="The name of the backup.")]
KEY_OR_LINK = Depends(key_or_link(backup.FOLDER))


@router.post(
    "",
    operation_id="create_backup",
    summary="Take a backup",
    dependencies=[ADMIN],
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


@router.get(
    "",
    operation_id="list_backups",
    summary="List backups",
    dependencies=[ADMIN],
    responses=problems(401, 403, 503),
)
async def list_backups(state: StateDep) -> BackupsAnswer:
    """List the complete backups under FC7_HOME/backups, oldest first. Those of a newer format are left out."""
    found = await state.in_index(backup.list_backups, state.settings.home / backup.FOLDER)
    return BackupsAnswer(backups=[BackupInfo.of(path, manifest) for path, manifest in found])


@router.get(
    "/{name}",
    operation_id="download_backup",
    summary="Download a backup",
    dependencies=[KEY_OR_LINK],
    response_class=StreamingResponse,
    responses=DOWNLOAD | problems(401, 403, 404, 409, 416, 422, 503),
)
async def download_backup(name: Name, request: Request, state: StateDep) -> Response:
    """Return a backup as a tar file, which contains a folder with its name. There is no deadline.

    After an interrupted download, send `Range` with the number of bytes that have arrived. Restore the extracted folder
    with `fc7 backup restore`, which compares every file with its checksum.
    """

    return tar_response(request, await state.in_index(_tar_folder, state, name))


@router.post(
    "/{name}/link",
    operation_id="link_backup",
    summary="Make a link that downloads a backup",
    dependencies=[ADMIN],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def link_backup(name: Name, request: Request, state: StateDep) -> DownloadLink:
    """Return a token with which `GET /v1/backups/{name}?link=TOKEN` needs no key, for ten minutes.

    Browsers cannot send a key with a download.
    """
    await state.in_index(_tar_folder, state, name)
    return link_to(request, f"{backup.FOLDER}/{name}")


@router.post(
    "/{name}/verify",
    operation_id="verify_backup",
    summary="Verify a backup",
    dependencies=[ADMIN],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def verify_backup(name: Name, request: Request, state: StateDep) -> BackupInfo:
    """Compare every file of a backup with its checksum.

    The answer is 409 with the names of the damaged files if there are any. There is no deadline. Verification stops if
    the client disconnects or the server shuts down.
    """

    def verify(stopped: Callable[[], bool]) -> BackupInfo:
        path = backup.find_backup(state.settings.home / backup.FOLDER, name)
        return BackupInfo.of(path, backup.verify_backup(path, advance=ends_if(stopped)))

    return await in_index_until_gone(request, state, verify)


@router.delete(
    "/{name}",
    operation_id="delete_backup",
    summary="Delete a backup",
    dependencies=[ADMIN],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def delete_backup(name: Name, state: StateDep) -> None:
    """Delete a backup, also one that this fc7 cannot read."""

    def delete() -> None:
        backup.remove_backup(backup.find_backup(state.settings.home / backup.FOLDER, name))

    await state.in_index(delete)


def _tar_folder(state: State, name: str) -> TarFolder:
    """Return a backup to download. Raises BackupNotFoundError, BackupError if a file is missing or cut off."""
    path = backup.find_backup(state.settings.home / backup.FOLDER, name)
    manifest, file = backup.read_backup(path), path / backup.MANIFEST
    files = {backup.MANIFEST: file.stat().st_size} | {each: entry.size for each, entry in manifest.files.items()}
    folder = TarFolder(path, files, manifest.created, sha256_of(file))
    if wrong := folder.wrong_files():
        raise backup.BackupError(path, f"is damaged: {'; '.join(wrong)}. Use another backup")
    return folder
