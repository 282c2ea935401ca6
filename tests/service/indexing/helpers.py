"""Jobs whose work is made of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.indexing.job import JobInfo, JobKind
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.jobs import Jobs
from service.indexing.work import Work
from service.observability.logs import make_logger
from tests.support.server import wait_until

Step = Callable[[], None]


class StepWork(Work):
    """Adds an image in each step. Jobs share the steps that are left."""

    takes_archive = True

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        assert store.files.archive(job.id).exists() == self.takes_archive
        while self.steps:
            self.steps.pop(0)()
            job.position += 1
            job.added += 1
            store.save_progress(job, [])
        return not stopped()


def work_of(*steps: Step) -> StepWork:
    """Return a work that runs these steps in turn."""
    return StepWork(list(steps))


def open_jobs(home: Path, work: Work, *, kind: JobKind = JobKind.ARCHIVE) -> Jobs:
    """Open the jobs of a home. Only one kind can be run."""
    return Jobs(home / "jobs", {kind: work}, make_logger("json", "error"))


def accepted(
    jobs: Jobs,
    data: bytes = b"archive",
    *,
    kind: JobKind = JobKind.ARCHIVE,
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """Queue a job with an archive, and return its id."""
    folder = jobs.new_folder()
    (folder / "archive").write_bytes(data)
    return jobs.accept_archive(kind, parameters or {}, folder, total=3).id


def ended(jobs: Jobs, job: str, state: str = "done") -> JobInfo:
    """Wait until a job has ended in this state."""
    wait_until(lambda: jobs.get(job).state.ended)
    assert jobs.get(job).state == state, jobs.get(job)
    return jobs.get(job)
