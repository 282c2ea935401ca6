"""What a kind of job does: the base class of `ArchiveImport` and of the other kinds.

A new kind is a member of `JobKind` and one subclass of `Work`, which `service.state` registers.

Guarantees: parameters are checked before a job is accepted, and stored as the JSON object that the client sent.
Out of scope: running jobs one after the other (`service.indexing.jobs`), their table (`service.indexing.job_store`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ParameterError
from service.indexing.job_store import JobStore, StoredJob


class JobParameters(BaseModel):
    """Base of the parameters of a kind. Without fields of its own, the kind has no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Work(ABC):
    """The work of one kind of job. `run` is called in the thread of the jobs, the other methods in any thread."""

    takes_archive: ClassVar[bool] = False
    """Whether the job has an archive: the body of its request, at `store.files.archive(job.id)`."""
    parameters: ClassVar[type[JobParameters]] = JobParameters
    permanent: ClassVar[tuple[type[BaseException], ...]] = ()
    """Errors that make the job `failed`. After any other `Fc7Error` or OSError it waits, and is tried again."""

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise an Fc7Error if a job with these parameters cannot be accepted. Subclasses may check more."""
        self.parse(parameters)

    def parse(self, parameters: Mapping[str, Any]) -> JobParameters:
        """Return the parameters as `self.parameters`. Raises ParameterError."""
        try:
            return self.parameters.model_validate(parameters)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"])) or "parameters"
            if first["type"] == "extra_forbidden":
                known = ", ".join(self.parameters.model_fields)
                expected = f"one of the parameters {known}" if known else "no parameters for this kind of job"
            else:
                expected = _as_expected(first["msg"])
            raise ParameterError(name, first["input"], expected) from None

    @abstractmethod
    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        """Do the job, from its position on if it was interrupted. Return False if `stopped()` became true before.

        `job.parameters` was checked. Save progress with `store.save_progress`. `job.result` is a JSON object, and
        `job.result_file` the name of a file in `store.files.result_folder(job.id)`; set them for the caller to store.
        """


def _as_expected(message: str) -> str:
    """Return a message of pydantic, such as "Input should be a valid integer", as the end of "expected ..."."""
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return text[:1].lower() + text[1:]
