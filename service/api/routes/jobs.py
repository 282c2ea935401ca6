"""`/v1/jobs`: adding archives of images in the background, and the progress of these jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, status

from service.api.archive_upload import ARCHIVE_TYPES, receive_archive
from service.api.routes.common import READ, WORK, WRITE, StateDep, problems
from service.api.schemas import JobsAnswer
from service.indexing.jobs import JobInfo

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[WORK])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVE_TYPES},
    }
}

Id = Annotated[str, Path(description="The ID of the job.")]


@router.post(
    "",
    operation_id="add_archive",
    summary="Start adding the images of an archive",
    dependencies=[WRITE],
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(401, 403, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=_BODY,
)
async def add_archive(request: Request, response: Response, state: StateDep) -> JobInfo:
    """Send a .zip, .tar, .tar.gz or .tar.bz2 file. The key of each image is its path in the archive.

    Poll the returned job for its progress.
    """
    state.index()
    job = await receive_archive(request, state)
    response.headers["Location"] = f"{state.settings.root_path}/v1/jobs/{job.id}"
    return job


@router.get("", operation_id="list_jobs", summary="List jobs", dependencies=[READ], responses=problems(401, 403))
async def list_jobs(state: StateDep) -> JobsAnswer:
    """List the waiting and running jobs and the last 100 finished ones, newest first."""
    return JobsAnswer(jobs=state.jobs.list())


@router.get(
    "/{job}",
    operation_id="get_job",
    summary="Get the progress of a job",
    dependencies=[READ],
    responses=problems(401, 403, 404, 409, 503),
)
async def get_job(job: Id, state: StateDep) -> JobInfo:
    """Return the state of a job, and how many images it has read, added and skipped so far."""
    return state.jobs.get(job)


@router.delete(
    "/{job}",
    operation_id="cancel_job",
    summary="Cancel a job",
    dependencies=[WRITE],
    responses=problems(401, 403, 404),
)
async def cancel_job(job: Id, state: StateDep) -> JobInfo:
    """Stop a job after its current batch. Images that it has added stay. A finished job is not changed."""
    return await state.in_index(state.jobs.cancel, job)
