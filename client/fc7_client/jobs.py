"""Operations on jobs: start one, wait for it, and get its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fc7_client.binding import listing, operation
from fc7_client.errors import JobError, JobTimeoutError
from fc7_client.models import Job, Jobs, Skipped, SkippedPage
from fc7_client.requests import ask, json_request, parameters, segment
from fc7_client.steps import Flow, Pages, Request, Sleep

_FIRST_POLL_S: Final = 0.05
_LAST_POLL_S: Final = 2.0


class JobOperations:
    """Operations on jobs, which are work of the server that continues after the request."""

    @operation
    def start_job(
        self,
        kind: str = "archive",
        archive: str | os.PathLike[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Flow[Job]:
        """Start a job, and return it.

        kind: "archive" adds the images of an archive to the index; "classify" writes the predictions for them to a
        file; "head" fits the last layer to labeled images; "map" computes the map. archive: a .zip, .tar, .tar.gz or
        .tar.bz2 file, which is streamed. options: of the kind, such as {"format": "parquet"} for "classify".
        """
        params = {"kind": kind}
        if archive is None:
            request = json_request("POST", "/v1/jobs", options or {}, params=params, repeatable=False)
        else:
            headers = {"Content-Type": "application/octet-stream"}
            params |= options or {}
            request = Request(
                "POST", "/v1/jobs", params=params, headers=headers, content=Path(archive), repeatable=False
            )
        return (yield from ask(request, Job))

    @operation
    def get_job(self, job_id: str) -> Flow[Job]:
        """Return the state of a job. Raises NotFoundError."""
        return (yield from ask(Request("GET", _path(job_id)), Job))

    @operation
    def list_jobs(self) -> Flow[list[Job]]:
        """Return the jobs, newest first."""
        return (yield from ask(Request("GET", "/v1/jobs"), Jobs)).jobs

    @operation
    def wait_for_job(
        self,
        job_id: str,
        *,
        progress: Callable[[Job], object] | None = None,
        timeout_s: float | None = None,
    ) -> Flow[Job]:
        """Wait until a job is done, also across a restart of the server, and return it.

        progress: is called with the job each time that it is asked for. Raises JobError if the job failed or was
        cancelled, JobTimeoutError.
        """
        start, pause = time.monotonic(), _FIRST_POLL_S
        while True:
            job = yield from ask(Request("GET", _path(job_id)), Job)
            if progress is not None:
                progress(job)
            if job.state == "done":
                return job
            if job.is_over:
                raise JobError(job)
            waited = time.monotonic() - start
            if timeout_s is not None and waited >= timeout_s:
                raise JobTimeoutError(job, timeout_s)
            yield Sleep(pause if timeout_s is None else min(pause, timeout_s - waited))
            pause = min(1.5 * pause, _LAST_POLL_S)

    @operation
    def job_result(self, job_id: str, target: str | os.PathLike[str]) -> Flow[Path]:
        """Download the result file of a job, and return its path. An existing file is replaced."""
        path = Path(target)
        yield Request("GET", f"{_path(job_id)}/result", target=path)
        return path

    @listing
    def skipped_entries(self, job_id: str, *, page_size: int = 1000) -> Pages[Skipped]:
        """Iterate over the entries of a job that could not be used, with their reasons."""

        def page(cursor: int | None) -> Flow[tuple[Sequence[Skipped], int | None]]:
            params = parameters(cursor=cursor, limit=page_size)
            found = yield from ask(Request("GET", f"{_path(job_id)}/skipped", params=params), SkippedPage)
            return found.skipped, found.next_cursor

        return page

    @operation
    def retry_job(self, job_id: str) -> Flow[Job]:
        """Continue a failed job. Raises ConflictError if it has not failed."""
        return (yield from ask(Request("POST", f"{_path(job_id)}/retry", repeatable=False), Job))

    @operation
    def cancel_job(self, job_id: str) -> Flow[Job]:
        """Stop a job after its current batch, or delete the files of one that has ended."""
        return (yield from ask(Request("DELETE", _path(job_id)), Job))


def _path(job_id: str) -> str:
    return f"/v1/jobs/{segment(job_id)}"
