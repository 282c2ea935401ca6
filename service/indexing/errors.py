"""Errors of jobs: subclasses of those in `service.errors`.

Out of scope: HTTP status codes (see `service.api.problems`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.errors import ConflictError, ServiceError, UnavailableError


@dataclass(eq=False)
class JobNotFoundError(ServiceError):
    """No job has this id."""

    job: str

    def __str__(self) -> str:
        return f"No job has the id {self.job[:80]!r}. GET /v1/jobs lists all jobs."


@dataclass(eq=False)
class JobResultError(ServiceError):
    """The job has no result file."""

    job: str
    state: str
    has_result: bool

    def __str__(self) -> str:
        if self.has_result:
            return f"Job {self.job} has no result file, or it was deleted. GET /v1/jobs/{self.job} has its result."
        return f"Job {self.job} is {self.state} and has no result file. Jobs of the kind classify write one."


@dataclass(eq=False)
class JobStoreError(UnavailableError):
    """The jobs of the home cannot be read. Everything else works."""

    retry_after = 60

    folder: Path
    reason: str
    message = (
        "The jobs in {folder} are not available: {reason}. Nothing in the folder was changed. Fix the cause, or "
        "move jobs.db away: the archives of accepted jobs are then read again."
    )


@dataclass(eq=False)
class JobStateError(ConflictError):
    """The job cannot be retried."""

    job: str
    state: str
    message = (
        "Job {job} is {state}. Only a failed job can be retried, and one with an archive only while the archive is "
        "kept (archive_bytes)."
    )
