"""Exception hierarchy of the client.

    Fc7ClientError
    ├── ConnectionFailedError     no answer: the server is gone, restarting or too slow
    ├── UnexpectedAnswerError     an answer that is not fc7's
    ├── JobError                  a job failed or was cancelled
    ├── JobTimeoutError           a job did not end in time
    └── ProblemError              the server answered with a problem (RFC 9457)
        ├── InvalidRequestError   400, 405, 408, 413, 415, 421, 422
        │   └── InvalidImageError     the image, not the request, is the reason
        ├── UnauthorizedError     401
        ├── ForbiddenError        403
        ├── NotFoundError         404
        ├── ConflictError         409
        ├── UnavailableError      502, 503; `retry_after` says when to try again
        │   └── RateLimitedError      429
        ├── DeadlineError         504
        ├── StorageFullError      507
        └── ServerError           500 and other statuses

Guarantees: every problem of a server has a class below `ProblemError`; its text is the server's explanation.
References: RFC 9457 (Problem Details for HTTP APIs), RFC 9110 section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from fc7_client.models import Job

TYPE_PREFIX: Final = "urn:fc7:problem:"
_MAX_DETAIL: Final = 500


class Fc7ClientError(Exception):
    """Base class of all errors of the client."""


class ConnectionFailedError(Fc7ClientError):
    """No server answered. `tries`: how often the request was sent; `seconds`: how long that took."""

    def __init__(self, url: str, reason: str, tries: int, seconds: float) -> None:
        self.url, self.tries, self.seconds = url, tries, seconds
        often = "1 try" if tries == 1 else f"{tries} tries in {seconds:.1f} s"
        super().__init__(
            f"No answer from {url} after {often} ({reason}). Check the address, and start the server with `fc7 serve`."
        )


class UnexpectedAnswerError(Fc7ClientError):
    """The answer does not have the form that this version of the client expects."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"The answer of {url} is not the expected one ({reason}). Check that the address is that of an fc7 server, "
            "and that server and client have the same version."
        )


class JobError(Fc7ClientError):
    """A job failed or was cancelled. `job`: its last state."""

    def __init__(self, job: Job) -> None:
        self.job = job
        reason = job.error or "It was cancelled."
        hint = f" Continue it with retry_job({job.id!r})." if job.state == "failed" else ""
        super().__init__(f"Job {job.id} is {job.state}: {reason}{hint}")


class JobTimeoutError(Fc7ClientError):
    """A job did not end in time. It continues on the server. `job`: its last state."""

    def __init__(self, job: Job, seconds: float) -> None:
        self.job = job
        reason = f" It waits: {job.waiting_for}" if job.waiting_for else ""
        super().__init__(
            f"Job {job.id} is {job.state} after {seconds:g} s ({job.seen:,} of {job.total:,} done).{reason} It "
            f"continues on the server: wait again with wait_for_job({job.id!r})."
        )


class ProblemError(Fc7ClientError):
    """The server answered with a problem. The text of the exception is its `detail`.

    status: of the HTTP answer. slug: kind of the problem, such as "queue-full", or "" if the server named none.
    title: of the kind. members: all members of the problem, such as `limit`, `index` and `parameter`.
    """

    def __init__(self, status: int, members: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status, self.members, self.retry_after = status, dict(members), retry_after
        self.slug = str(members.get("type", "")).removeprefix(TYPE_PREFIX)
        self.title = str(members.get("title", ""))
        self.detail = str(members["detail"])
        super().__init__(self.detail)

    @property
    def index(self) -> int | None:
        """The position of the invalid image in the request, from 0, or None."""
        index = self.members.get("index")
        return index if isinstance(index, int) else None


class InvalidRequestError(ProblemError):
    """The request is malformed, too large or has an invalid parameter."""


class InvalidImageError(InvalidRequestError):
    """An image is broken, too large or in a format that is not supported."""


class UnauthorizedError(ProblemError):
    """An API key is required, or the key is unknown."""


class ForbiddenError(ProblemError):
    """The API key does not have the required scope."""


class NotFoundError(ProblemError):
    """The image, job, model or path does not exist."""


class ConflictError(ProblemError):
    """The request conflicts with the current state of the index or the models."""


class UnavailableError(ProblemError):
    """The server cannot answer now. `retry_after`: in how many seconds to try again, or None."""


class RateLimitedError(UnavailableError):
    """Too many requests. `retry_after`: in how many seconds to try again, or None."""


class DeadlineError(ProblemError):
    """The server, or a proxy before it, did not answer in time."""


class StorageFullError(ProblemError):
    """The server's disk is full."""


class ServerError(ProblemError):
    """The server failed. Its log has the reason."""


_BY_STATUS: Final[Mapping[int, type[ProblemError]]] = {
    **dict.fromkeys((400, 405, 408, 413, 415, 421, 422), InvalidRequestError),
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitedError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineError,
    507: StorageFullError,
}
_IMAGE_SLUGS: Final = frozenset(
    {
        "image-unreadable",
        "image-format",
        "bad-image",
        "image",
        "image-too-large",
        "decode-time",
        "decode-memory",
        "decoder-crash",
    }
)


def problem_of(response: httpx.Response) -> ProblemError:
    """Return the exception for an answer with an error status. The body must have been read."""
    status = response.status_code
    try:
        members = response.json()
    except (ValueError, UnicodeDecodeError):
        members = None
    if isinstance(members, dict) and isinstance(members.get("reasons"), list):  # GET /readyz
        members = {"detail": " ".join(map(str, members["reasons"])), **members}
    if not isinstance(members, dict) or "detail" not in members:
        text = json.dumps(response.text[:_MAX_DETAIL], ensure_ascii=False) if response.content else "nothing"
        members = {"detail": f"The server answered {status} {response.reason_phrase} with {text}. Is it fc7?"}
    kind = _BY_STATUS.get(status, ServerError)
    if str(members.get("type", "")).removeprefix(TYPE_PREFIX) in _IMAGE_SLUGS:
        kind = InvalidImageError
    return kind(status, members, _retry_after(response.headers.get("retry-after", "")))


def _retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header, which is a number of seconds or a date, or None."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
