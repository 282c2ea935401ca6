"""`/v1/jobs`: archives of images, added in the background; how far they are; and their end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response, status

from service.api.archive_upload import ARCHIVE_TYPES, receive_archive
from service.api.auth import require
from service.api.routes.common import WORK, StateDep, problems
from service.api.schemas import JobsAnswer
from service.indexing.jobs import JobInfo
from service.settings import Scope

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[WORK])

_READ, _WRITE = Depends(require(Scope.READ)), Depends(require(Scope.WRITE))
_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVE_TYPES},
    }
}

Id = Annotated[str, Path(description="The job's id.")]


@router.post(
    "",
    operation_id="add_archive",
    summary="Add the images of an archive",
    dependencies=[_WRITE],
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(401, 403, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=_BODY,
)
async def add_archive(request: Request, response: Response, state: StateDep) -> JobInfo:
    """Send a .zip, .tar, .tar.gz or .tar.bz2; each image's key is its path inside. The answer is the job to follow."""
    state.index()
    job = await receive_archive(request, state)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get(
    "", operation_id="list_jobs", summary="All jobs, newest first", dependencies=[_READ], responses=problems(401, 403)
)
async def list_jobs(state: StateDep) -> JobsAnswer:
    """List what waits, runs, and the last hundred that ended."""
    return JobsAnswer(jobs=state.jobs.list())


@router.get(
    "/{job}",
    operation_id="get_job",
    summary="How far a job is",
    dependencies=[_READ],
    responses=problems(401, 403, 404, 409, 503),
)
async def get_job(job: Id, state: StateDep) -> JobInfo:
    """Count what was seen, added and skipped so far."""
    return state.jobs.get(job)


@router.delete(
    "/{job}", operation_id="cancel_job", summary="Stop a job", dependencies=[_WRITE], responses=problems(401, 403, 404)
)
async def cancel_job(job: Id, state: StateDep) -> JobInfo:
    """Have a job end after the images in hand; what it added stays. One that has ended is left as it is."""
    return await state.in_index(state.jobs.cancel, job)
