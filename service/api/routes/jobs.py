"""`/v1/jobs`: adding archives of images in the background, and the progress of these jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response, status

from service.api.archive_upload import ARCHIVE_TYPES, receive_archive
from service.api.routes.common import READ, WORK, WRITE, StateDep, problems
from service.indexing.job import JobInfo, JobsAnswer, SkippedAnswer

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

    Bytes of a name that are not UTF-8, and control characters, become `\\xNN` in the key. An entry that cannot be added
    is skipped and listed with its reason. A file metadata.jsonl gives images metadata, by their path relative to it.
    Poll the returned job for its progress.
    """
    state.index()
    job = await receive_archive(request, state)
    response.headers["Location"] = f"{state.settings.root_path}/v1/jobs/{job.id}"
    return job


@router.get(
    "", operation_id="list_jobs", summary="List jobs", dependencies=[READ], responses=problems(401, 403, 409, 503)
)
async def list_jobs(state: StateDep) -> JobsAnswer:
    """List waiting and running jobs, failed ones whose archive is kept, and the last 100 others, newest first."""
    return JobsAnswer(jobs=await state.in_index(state.jobs.list))


@router.get(
    "/{job}",
    operation_id="get_job",
    summary="Get the progress of a job",
    dependencies=[READ],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def get_job(job: Id, state: StateDep) -> JobInfo:
    """Return the state of a job, and how many entries of its archive were seen, added and skipped so far."""
    return await state.in_index(state.jobs.get, job)


@router.get(
    "/{job}/skipped",
    operation_id="list_skipped",
    summary="List the skipped entries of a job",
    dependencies=[READ],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def list_skipped(
    job: Id,
    state: StateDep,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Maximum number of entries.")] = 1_000,
    cursor: Annotated[int, Query(ge=0, description="The `next_cursor` of the previous page.")] = 0,
) -> SkippedAnswer:
    """Return a page of the entries that were not added, with their reasons, in the order of the archive."""
    entries, next_cursor = await state.in_index(state.jobs.skipped, job, cursor, limit)
    return SkippedAnswer(skipped=entries, next_cursor=next_cursor)


@router.post(
    "/{job}/retry",
    operation_id="retry_job",
    summary="Retry a failed job",
    dependencies=[WRITE],
    responses=problems(401, 403, 404, 409, 422, 503, 507),
)
async def retry_job(job: Id, state: StateDep) -> JobInfo:
    """Continue a failed job whose archive was kept. Its counts and its position in the archive stay."""
    return await state.in_index(state.jobs.retry, job)


@router.delete(
    "/{job}",
    operation_id="cancel_job",
    summary="Cancel a job",
    dependencies=[WRITE],
    responses=problems(401, 403, 404, 409, 422, 503, 507),
)
async def cancel_job(job: Id, state: StateDep) -> JobInfo:
    """Stop a job after its current batch, or delete the archive of a failed one. Images that it has added stay."""
    return await state.in_index(state.jobs.cancel, job)
