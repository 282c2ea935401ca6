"""Exception hierarchy of the service package.

Fc7Error
└── ServiceError
    ├── SettingError          a setting has an invalid value
    ├── RequestError          the request is invalid
    │   ├── ParameterError        a parameter is out of range
    │   ├── HostMalformedError    the Host header is missing, repeated or malformed
    │   ├── HostNotAllowedError   the Host header names a host that is not this server's
    │   ├── BodyMalformedError    the body violates the rules of its type
    │   ├── BodyTypeError         the Content-Type is not supported
    │   ├── BodyEncodingError     the Content-Encoding is not supported
    │   ├── BodyTooLargeError     the body exceeds the size limit
    │   ├── BodyTimeoutError      the body did not arrive in time
    │   ├── TooManyImagesError    the request has more images than allowed
    │   ├── ClientGoneError       the client disconnected before the response
    │   └── BadImageError         one of several images failed; the status is that of its error
    ├── AccessError
    │   ├── UnauthorizedError     the key is missing
    │   │   ├── UnknownKeyError       the key is unknown or was revoked
    │   │   └── KeyExpiredError       the key has expired
    │   ├── RateLimitError        the key sent too many requests: try again after `retry_after` seconds
    │   ├── ForbiddenError        the key does not have the required scope
    │   └── OriginNotAllowedError a web page of another origin sent the request
    ├── UnavailableError      temporary: try again after `retry_after` seconds
    │   ├── QueueFullError        the queue is full
    │   ├── DrainingError         the server is shutting down
    │   ├── NotReadyError         no model is active
    │   ├── RunnerDeadError       the model's device failed permanently
    │   ├── MemoryShortError      not enough memory to load another version
    │   ├── ResourcesExhaustedError  the process is out of memory, threads, open files or connections
    │   ├── VersionsPinnedError   an activation or a migration needs all versions in memory
    │   └── ModelNotLoadedError   the version was just removed from memory
    ├── ConflictError         the request conflicts with the current state
    │   ├── ActivationRunningError  another version is being activated
    │   └── TooManyModelsError    the limit of versions in memory is reached
    ├── ReportNotFoundError   a version has no such file in its report
    ├── StorageError          a temporary file cannot be written
    └── DeadlineError         decoding, queueing and running took too long

Out of scope: HTTP status codes (see `service.api.problems`), errors of jobs (see `service.indexing.errors`).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from model_store.errors import Fc7Error


class ServiceError(Fc7Error):
    """Base of all errors of the service."""


@dataclass(eq=False)
class SettingError(ServiceError):
    """A setting has an invalid value, so the service does not start."""

    variable: str
    value: str
    expected: str
    message = "{variable}={value} is not valid: expected {expected}."


class RequestError(ServiceError):
    """The request is invalid."""


@dataclass(eq=False)
class ParameterError(RequestError):
    """A parameter is out of range."""

    name: str
    value: object
    expected: str
    limit: int | None = None
    message = "{name}={value} is not valid: expected {expected}."


@dataclass(eq=False)
class HostMalformedError(RequestError):
    """The request does not have exactly one valid Host header."""

    found: str

    def __str__(self) -> str:
        problem = f"The Host header {self.found!r} is not valid" if self.found else "The Host header is missing"
        return f"{problem}. Send exactly one, with the host name or IP address of the server, and the port."


@dataclass(eq=False)
class HostNotAllowedError(RequestError):
    """The request names a host that is not known to be this server: a web page may have been given its address."""

    host: str
    message = (
        "The host {host!r} in the Host header is not allowed. Use localhost or the server's IP address, or add the "
        "name to FC7_ALLOWED_HOSTS and restart the server."
    )


class BodyMalformedError(RequestError):
    """The body violates the rules of its type. The message says how."""


@dataclass(eq=False)
class BodyTypeError(RequestError):
    """The Content-Type is not supported. `fix` is a sentence that says what to send instead."""

    found: str
    fix: str

    def __str__(self) -> str:
        problem = f"The Content-Type {self.found} is not supported." if self.found else "The Content-Type is missing."
        return f"{problem} {self.fix}"


@dataclass(eq=False)
class BodyEncodingError(RequestError):
    """The Content-Encoding is not supported. `accepted` is the value of the response's Accept-Encoding header."""

    found: str
    accepted: str

    def __str__(self) -> str:
        fix = "Send the body uncompressed" if self.accepted == "identity" else f"Use one of {self.accepted}, or none"
        return f"The Content-Encoding {self.found[:80]} is not supported. {fix}."


@dataclass(eq=False)
class BodyTooLargeError(RequestError):
    """The body exceeds the size limit. The rest of it is not read."""

    limit: int
    message = "The body is larger than {limit:,} bytes. Send smaller images, or fewer images per request."


@dataclass(eq=False)
class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    limit: float
    message = "The body did not arrive within {limit:g} s. Try again on a faster connection, or send less data."


@dataclass(eq=False)
class TooManyImagesError(RequestError):
    """The request has more images than allowed."""

    limit: int
    message = "A request may contain at most {limit} images. Send the others in another request."


class ClientGoneError(RequestError):
    """The client disconnected before the response. The error is not sent."""

    message = "The client closed the connection."


@dataclass(eq=False)
class BadImageError(RequestError):
    """One image of a request failed. `index` counts from 0; the HTTP status is that of `error`."""

    index: int
    error: Fc7Error
    message = "Image {index}: {error}"


class AccessError(ServiceError):
    """The caller is not allowed to do this."""


class UnauthorizedError(AccessError):
    """The key is missing."""

    message = "A valid API key is required. Send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."


class UnknownKeyError(UnauthorizedError):
    """The key is unknown or was revoked."""

    message = "The API key is not valid: it is unknown or was revoked. Check that it is complete, or ask for a new one."


@dataclass(eq=False)
class KeyExpiredError(UnauthorizedError):
    """The key has expired."""

    name: str
    expired: datetime
    message = "The API key {name} expired at {expired:%Y-%m-%d %H:%M} UTC. Ask for a new one."


@dataclass(eq=False)
class RateLimitError(AccessError):
    """The key sent more requests than its rate allows. `retry_after` is in whole seconds."""

    name: str
    rate: object
    retry_after: int
    message = "The API key {name} may send {rate} requests. Try again in {retry_after} s."


class ForbiddenError(AccessError):
    """The key does not have the required scope. The message says which one is required."""


@dataclass(eq=False)
class OriginNotAllowedError(AccessError):
    """A web page of another origin sent the request without a key."""

    origin: str
    message = (
        "A web page of another origin ({origin}) sent this request. If you trust the page, add its origin to "
        "FC7_ALLOWED_ORIGINS and restart the server."
    )


@dataclass(eq=False)
class ReportNotFoundError(ServiceError):
    """A version has no such file in its report."""

    model: str
    file: str

    def __str__(self) -> str:
        path = f"/v1/models/{self.model.replace(':', '/')}/report"
        return f"The report of {self.model} has no file {self.file[:80]!r}. GET {path} lists its files."


class UnavailableError(ServiceError):
    """The service cannot answer now. `retry_after` is in whole seconds."""

    retry_after = 1


@dataclass(eq=False)
class QueueFullError(UnavailableError):
    """The limit of images (or bytes of bodies, or jobs) in the server is reached."""

    what: str
    limit: int
    retry_after: int
    message = "The server is at its limit of {limit:,} {what}. Try again in {retry_after} s."


class DrainingError(UnavailableError):
    """The server answers the admitted requests, and then stops."""

    message = "The server is shutting down. Try again in a moment."


class NotReadyError(UnavailableError):
    """No model is active, or the index is not open. The message says how to fix it."""

    retry_after = 30


@dataclass(eq=False)
class RunnerDeadError(UnavailableError):
    """The model's device failed permanently. The process exits, so that its supervisor starts a new one."""

    retry_after = 5

    reason: str
    message = (
        "The model stopped working: {reason}. The server exits and is restarted if it runs under a supervisor. Its "
        "log shows the cause."
    )


@dataclass(eq=False)
class MemoryShortError(UnavailableError):
    """There is not enough memory to load another version. `needed` and `available` are in bytes.

    `available` is 0 if an allocation failed, for example because of a limit of the process.
    """

    retry_after = 30

    model: str
    needed: int
    available: int

    def __str__(self) -> str:
        problem = (
            f"Loading {self.model} temporarily needs {self.needed / 1e6:,.0f} MB of memory, but only "
            f"{self.available / 1e6:,.0f} MB are available."
            if self.available
            else f"The memory of the process ran out while {self.model} or its vectors were loaded."
        )
        return (
            f"{problem} Give the service more memory, lower FC7_MAX_LOADED, or run "
            f"fc7 models activate {self.model} and restart the service."
        )


@dataclass(eq=False)
class ResourcesExhaustedError(UnavailableError):
    """The process has no more of a resource: memory, threads, open files or connections."""

    retry_after = 2

    resource: str
    message = (
        "The server has no more {resource}. Try again in a moment. If this persists, send fewer requests at once, or "
        "raise the limit of the server."
    )


@dataclass(eq=False)
class VersionsPinnedError(UnavailableError):
    """An activation, or the migration of the index, needs all versions that may be in memory."""

    retry_after = 10

    limit: int
    loaded: Sequence[str]

    def __str__(self) -> str:
        return (
            f"At most {self.limit} versions may be in memory, and {', '.join(self.loaded)} are needed until an "
            "activation or the migration of the index is complete. Try again then, or raise FC7_MAX_LOADED."
        )


@dataclass(eq=False)
class ModelNotLoadedError(UnavailableError):
    """A version is not in memory, or not any more."""

    model: str
    message = "The model {model} is not in memory. Try again."


class ConflictError(ServiceError):
    """The request conflicts with the current state."""


@dataclass(eq=False)
class ActivationRunningError(ConflictError):
    """Another version is being activated."""

    model: str
    message = "Another activation is running ({model}). Try again when it is done."


@dataclass(eq=False)
class TooManyModelsError(ConflictError):
    """The limit of versions in memory is reached, and none of them can be unloaded."""

    limit: int
    loaded: Sequence[str]

    def __str__(self) -> str:
        return (
            f"At most {self.limit} versions may be in memory, and {', '.join(self.loaded)} must stay loaded. "
            "Raise FC7_MAX_LOADED, or omit the model from the request."
        )


@dataclass(eq=False)
class StorageError(ServiceError):
    """The disk of the server is full or failing."""

    reason: str
    message = "The server cannot write to its disk ({reason}). Nothing was changed. Free disk space and try again."


@dataclass(eq=False)
class DeadlineError(ServiceError):
    """Decoding, queueing and running together took longer than the deadline."""

    limit: float
    message = "The response was not ready within {limit:g} s. Try again, or send fewer images per request."


_EXHAUSTED = {errno.EMFILE: "open files", errno.ENFILE: "open files", errno.ENOMEM: "memory", errno.ENOBUFS: "memory"}
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def translate_system_error(error: BaseException) -> ResourcesExhaustedError | StorageError | None:
    """Return the error of the service for an error of the operating system; None for any other error."""
    if isinstance(error, MemoryError):
        return ResourcesExhaustedError("memory")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return ResourcesExhaustedError("threads")
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return ResourcesExhaustedError(_EXHAUSTED[error.errno])
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return StorageError(error.strerror or "disk full")
    return None
