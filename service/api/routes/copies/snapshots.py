"""`/v1/index/snapshots`: take, list, verify, download and delete snapshots of the index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse

from index.catalog.backup import (
    FOLDER,
    MANIFEST,
    find_snapshot,
    list_snapshots,
    read_manifest,
    remove_snapshot,
    snapshot_name,
    verify_snapshot,
)
from index.catalog.database import CATALOG_FILE
from index.errors import SnapshotError
from service.api.downloads.links import key_or_link, link_to
from service.api.downloads.tar_stream import DOWNLOAD, TarFolder, tar_response
from service.api.routes.common import ADMIN, WORK, StateDep, ends_if, in_index_until_gone, problems
from service.api.schemas.backups import DownloadLink
from service.api.schemas.index import SnapshotInfo, SnapshotsAnswer
from service.state import State

router = APIRouter(prefix="/v1/index/snapshots", tags=["index"], dependencies=[WORK])

Name = Annotated[str, PathParameter(description="The name of the snapshot.")]
_LINKED = f"index/{FOLDER}"


def _folder(state: State) -> Path:
    return state.settings.home / FOLDER


@router.post(
    "",
    operation_id="take_snapshot",
    summary="Take a snapshot of the index",
    dependencies=[ADMIN],
    status_code=status.HTTP_201_CREATED,
    responses=problems(401, 403, 409, 503, 507),
)
async def take_snapshot(state: StateDep) -> SnapshotInfo:
    """Copy the index to a new folder under FC7_HOME/snapshots, without blocking writes.

    Restore it with `fc7 index restore`. The response is sent when the snapshot is on disk; there is no deadline.
    """
    target = _folder(state) / snapshot_name()
    return SnapshotInfo.of(target, await state.in_index(state.index().snapshot, target))


@router.get(
    "",
    operation_id="list_snapshots",
    summary="List snapshots of the index",
    dependencies=[ADMIN],
    responses=problems(401, 403, 503),
)
async def list_all(state: StateDep) -> SnapshotsAnswer:
    """List the complete snapshots under FC7_HOME/snapshots, oldest first. Those of a newer format are left out."""
    found = await state.in_index(list_snapshots, _folder(state))
    return SnapshotsAnswer(snapshots=[SnapshotInfo.of(path, manifest) for path, manifest in found])


@router.get(
    "/{name}",
    operation_id="download_snapshot",
    summary="Download a snapshot of the index",
    dependencies=[Depends(key_or_link(_LINKED))],
    response_class=StreamingResponse,
    responses=DOWNLOAD | problems(401, 403, 404, 409, 416, 422, 503),
)
async def download_snapshot(name: Name, request: Request, state: StateDep) -> Response:
    """Return a snapshot as a tar file, which contains a folder with its name. There is no deadline.

    After an interrupted download, send `Range` with the number of bytes that have arrived. Restore the extracted folder
    with `fc7 index restore`, which compares it with its checksum.
    """

    return tar_response(request, await state.in_index(_tar_folder, state, name))


@router.post(
    "/{name}/link",
    operation_id="link_snapshot",
    summary="Make a link that downloads a snapshot",
    dependencies=[ADMIN],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def link_snapshot(name: Name, request: Request, state: StateDep) -> DownloadLink:
    """Return a token with which `GET /v1/index/snapshots/{name}?link=TOKEN` needs no key, for ten minutes.

    Browsers cannot send a key with a download.
    """
    await state.in_index(_tar_folder, state, name)
    return link_to(request, f"{_LINKED}/{name}")


@router.post(
    "/{name}/verify",
    operation_id="verify_snapshot",
    summary="Verify a snapshot of the index",
    dependencies=[ADMIN],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def verify(name: Name, request: Request, state: StateDep) -> SnapshotInfo:
    """Compare a snapshot with its checksum. The answer is 409 if it is damaged.

    There is no deadline. Verification stops if the client disconnects or the server shuts down.
    """

    def check(stopped: Callable[[], bool]) -> SnapshotInfo:
        path = find_snapshot(_folder(state), name)
        return SnapshotInfo.of(path, verify_snapshot(path, advance=ends_if(stopped)))

    return await in_index_until_gone(request, state, check)


@router.delete(
    "/{name}",
    operation_id="delete_snapshot",
    summary="Delete a snapshot of the index",
    dependencies=[ADMIN],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(401, 403, 404, 422, 503, 507),
)
async def delete_snapshot(name: Name, state: StateDep) -> None:
    """Delete a snapshot, also one that this fc7 cannot read."""
    await state.in_index(lambda: remove_snapshot(find_snapshot(_folder(state), name)))


def _tar_folder(state: State, name: str) -> TarFolder:
    """Return a snapshot to download. Raises SnapshotNotFoundError, SnapshotError if a file is missing or cut off."""
    path = find_snapshot(_folder(state), name)
    manifest = read_manifest(path)
    files = {MANIFEST: (path / MANIFEST).stat().st_size, CATALOG_FILE: manifest.size}
    folder = TarFolder(path, files, manifest.created, manifest.sha256)
    if wrong := folder.wrong_files():
        raise SnapshotError(path, f"is damaged: {'; '.join(wrong)}")
    return folder
