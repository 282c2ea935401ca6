"""`/v1/jobs`: work in the background, such as adding an archive of images: start it, watch it, get its result."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, status
from fastapi.responses import FileResponse

from service.api.archive_upload import ARCHIVE_TYPES, receive_archive
from service.api.json_body import receive_parameters
from service.api.parameters import JobQuery
from service.api.problems import without_folders
from service.api.routes.common import READ, WORK, WRITE, StateDep, problems
from service.api_keys import Scope
from service.indexing.job import JobInfo, JobKind, JobsAnswer, SkippedAnswer
from service.state import State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[WORK])

_BODY = {
    "requestBody": {
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVE_TYPES},
            "application/json": {
                "schema": {"type": "object", "description": "Parameters of a job without an archive."}
            },
        },
    }
}
_MEDIA_TYPES = {".csv": "text/csv; charset=utf-8", ".jsonl": "application/jsonl"}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

Id = Annotated[str, Path(description="The ID of the job.")]


@router.post(
    "",
    operation_id="start_job",
    summary="Start a job",
    dependencies=[WRITE],
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=_BODY,
)
async def start_job(
    request: Request, response: Response, query: Annotated[JobQuery, Query()], state: StateDep
) -> JobInfo:
    """Start adding the images of an archive to the index, or another kind of job. Poll the returned job.

    The body of the kind `archive` is a .zip, .tar, .tar.gz or .tar.bz2 file. The key of each image is its path in the
    archive. Bytes of a name that are not UTF-8, and control characters, become `\\xNN` in the key. An entry that cannot
    be used is skipped and listed with its reason. A file metadata.jsonl gives images metadata, by their path relative
    to it. A job that needs no archive takes its parameters as a JSON object.
    """
    state.index()
    parameters = query.model_dump(mode="json", exclude={"kind"}, exclude_unset=True)
    if state.jobs.takes_archive(query.kind):
        job = await receive_archive(request, state, query.kind, parameters)
    else:
        parameters |= await receive_parameters(request, state.settings.upload_timeout_s)
        job = await state.in_index(state.jobs.accept, query.kind, parameters)
    response.headers["Location"] = f"{state.settings.root_path}/v1/jobs/{job.id}"
    return _shown(job, state)


@router.get(
    "", operation_id="list_jobs", summary="List jobs", dependencies=[READ], responses=problems(401, 403, 409, 503)
)
async def list_jobs(state: StateDep) -> JobsAnswer:
    """List waiting and running jobs, failed ones whose archive is kept, and the last 100 others, newest first."""
    return JobsAnswer(jobs=[_shown(job, state) for job in await state.in_index(state.jobs.list)])


@router.get(
    "/{job}",
    operation_id="get_job",
    summary="Get the progress of a job",
    dependencies=[READ],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def get_job(job: Id, state: StateDep) -> JobInfo:
    """Return the state of a job, how much of it is done, and its result."""
    return _shown(await state.in_index(state.jobs.get, job), state)


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
    """Return a page of the entries that could not be used, with their reasons, in the order of the archive."""
    entries, next_cursor = await state.in_index(state.jobs.skipped, job, cursor, limit)
    return SkippedAnswer(skipped=entries, next_cursor=next_cursor)


@router.get(
    "/{job}/result",
    operation_id="get_job_result",
    summary="Download the result file of a job",
    dependencies=[READ],
    response_class=FileResponse,
    responses={**_FILE, **problems(401, 403, 404, 409, 422, 503)},
)
async def get_job_result(job: Id, state: StateDep) -> FileResponse:
    """Return the file that a job has written. It is kept until it is deleted, or 16 later jobs have written one."""
    file = await state.in_index(state.jobs.result_file, job)
    return FileResponse(file, media_type=_MEDIA_TYPES.get(file.suffix), filename=f"{job}{file.suffix}")


@router.post(
    "/{job}/retry",
    operation_id="retry_job",
    summary="Retry a failed job",
    dependencies=[WRITE],
    responses=problems(401, 403, 404, 409, 422, 503, 507),
)
async def retry_job(job: Id, request: Request, state: StateDep) -> JobInfo:
    """Continue a failed job. If it has an archive that was kept, its counts and its position in the archive stay.

    The job of a backup requires the scope admin.
    """
    await _check_scope(job, request, state)
    return _shown(await state.in_index(state.jobs.retry, job), state)


@router.delete(
    "/{job}",
    operation_id="cancel_job",
    summary="Cancel a job",
    dependencies=[WRITE],
    responses=problems(401, 403, 404, 409, 422, 503, 507),
)
async def cancel_job(job: Id, request: Request, state: StateDep) -> JobInfo:
    """Stop a job after its current batch, or delete the archive and the result file of one that has ended.

    Images that it has added stay. The job of a backup requires the scope admin.
    """
    await _check_scope(job, request, state)
    return _shown(await state.in_index(state.jobs.cancel, job), state)


async def _check_scope(job: str, request: Request, state: State) -> None:
    """Raise ForbiddenError if the job requires the scope admin, as starting it did, and the key does not have it."""
    if (await state.in_index(state.jobs.get, job)).kind is JobKind.BACKUP:
        request.app.state.keyring.check_again(request, Scope.ADMIN)


def _shown(job: JobInfo, state: State) -> JobInfo:
    """Return the job without absolute paths of the server's folders in its messages."""
    texts = {"error": job.error, "waiting_for": job.waiting_for}
    changes = {name: without_folders(text, state.settings) for name, text in texts.items() if text}
    return job.model_copy(update=changes)
