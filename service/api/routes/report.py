"""`/v1/models/{name}/{version}/report`: the figures and tables that the training wrote about a version.

Guarantees: only files that the manifest lists below `report/` are served, and only with the bytes that were published.
Out of scope: the figures in the manifest (see `/v1/models`), writing reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response

from model_store.artifact import Artifact
from model_store.manifest import REPORT_FOLDER
from service.api.routes.common import READ, StateDep, problems, revalidated
from service.api.schemas.models import ReportAnswer, ReportFile
from service.errors import ReportNotFoundError

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[READ])

# Types that a browser cannot run. Others are sent as bytes to save.
_TYPES = {".png": "image/png", ".csv": "text/csv; charset=utf-8", ".json": "application/json", ".txt": "text/plain"}
_OTHER = "application/octet-stream"

Version = Annotated[int, Path(ge=1)]


@router.get(
    "/{name}/{version}/report",
    operation_id="list_report",
    summary="List the files of a version's report",
    responses=problems(401, 403, 404, 422),
)
def list_report(name: str, version: Version, state: StateDep) -> ReportAnswer:
    """List the figures and tables that the training wrote: confusion matrix, curves, reliability, conv1's kernels."""
    artifact = state.store.get(name, version, verify=False)
    path = f"{state.settings.root_path}/v1/models/{artifact.name}/{artifact.version}/{REPORT_FOLDER}"
    return ReportAnswer(
        files=[
            ReportFile(
                name=file,
                media_type=_media_type(file),
                size=artifact.manifest.files[entry].size,
                sha256=artifact.manifest.files[entry].sha256,
                path=f"{path}/{quote(file)}",
            )
            for file, entry in _files(artifact)
        ]
    )


@router.get(
    "/{name}/{version}/report/{file:path}",
    operation_id="get_report_file",
    summary="Get a file of a version's report",
    response_class=Response,
    responses=problems(401, 403, 404, 422)
    | {
        200: {
            "content": {"image/png": {}, "text/csv": {}, "application/json": {}},
            "description": "The file, with its type.",
        },
        304: {"description": "The file still has the ETag in If-None-Match."},
    },
)
def get_report_file(request: Request, name: str, version: Version, file: str, state: StateDep) -> Response:
    """Return a file of the report, after comparing it with its SHA-256 in the manifest."""
    artifact = state.store.get(name, version, verify=False)
    entry = dict(_files(artifact)).get(file)
    if entry is None:
        raise ReportNotFoundError(artifact.id, file)
    return revalidated(request, artifact.read(entry), _media_type(file))


def _files(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Yield the name of each file of the report, and its name in the manifest."""
    for entry in sorted(artifact.manifest.files):
        folder, _, file = entry.partition("/")
        if folder == REPORT_FOLDER and file:
            yield file, entry


def _media_type(file: str) -> str:
    return _TYPES.get(PurePosixPath(file).suffix.lower(), _OTHER)
