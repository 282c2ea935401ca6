"""Exception hierarchy of the service package.

Fc7Error
└── ServiceError
    ├── SettingError          a setting has an invalid value
    ├── RequestError          the request is invalid
    │   ├── ParameterError        a parameter is out of range
    │   ├── BodyMalformedError    the body violates the rules of its type
    │   ├── BodyTypeError         the Content-Type is not supported
    │   ├── BodyEncodingError     the Content-Encoding is not supported
    │   ├── BodyTooLargeError     the body exceeds the size limit
    │   ├── BodyTimeoutError      the body did not arrive in time
    │   ├── TooManyImagesError    the request has more images than allowed
    │   ├── ClientGoneError       the client disconnected before the response
    │   └── BadImageError         one image of several failed; its own error decides the status
    ├── AccessError
    │   ├── UnauthorizedError     the key is missing or unknown
    │   └── ForbiddenError        the key does not have the required scope
    ├── UnavailableError      temporary: try again after `retry_after` seconds
    │   ├── QueueFullError        the queue is full
    │   ├── DrainingError         the server is shutting down
    │   ├── NotReadyError         no model is active
    │   ├── RunnerDeadError       the model's device failed permanently
    │   ├── MemoryShortError      not enough memory to load another version
    │   └── ModelNotLoadedError   the version was just removed from memory
    ├── ConflictError         the request conflicts with the current state
    │   ├── ActivationRunningError  another version is being activated
    │   └── TooManyModelsError    the limit of versions in memory is reached
    ├── JobNotFoundError      no job has this id
    └── DeadlineError         decoding, queueing and running took too long

Guarantees: every error has its values as attributes, and its message says what failed and how to fix it.
Out of scope: HTTP status codes (see `service.api.problems`).
"""

from __future__ import annotations

from collections.abc import Sequence

from model_store.errors import Fc7Error


class ServiceError(Fc7Error):
    """Base of all errors of the service."""


class SettingError(ServiceError):
    """A setting has an invalid value, so the service does not start."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(variable, value, expected)
        self.variable, self.value, self.expected = variable, value, expected

    def __str__(self) -> str:
        return f"{self.variable}={self.value} is not valid: expected {self.expected}."


class RequestError(ServiceError):
    """The request is invalid."""


class ParameterError(RequestError):
    """A parameter is out of range."""

    def __init__(self, name: str, value: object, expected: str, limit: int | None = None) -> None:
        super().__init__(name, value, expected, limit)
        self.name, self.value, self.expected, self.limit = name, value, expected, limit

    def __str__(self) -> str:
        return f"{self.name}={self.value} is not valid: expected {self.expected}."


class BodyMalformedError(RequestError):
    """The body violates the rules of its type. The message says how."""


class BodyTypeError(RequestError):
    """The Content-Type is not supported. `fix` is a sentence that says what to send instead."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found, fix)
        self.found, self.fix = found, fix

    def __str__(self) -> str:
        problem = f"The Content-Type {self.found} is not supported." if self.found else "The Content-Type is missing."
        return f"{problem} {self.fix}"


class BodyEncodingError(RequestError):
    """The Content-Encoding is not supported."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"The Content-Encoding {self.found} is not supported. Send gzip, deflate or an uncompressed body."


class BodyTooLargeError(RequestError):
    """The body exceeds the size limit. The rest of it is not read."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"The body is larger than {self.limit:,} bytes. Send smaller images, or fewer images per request."


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"The body did not arrive within {self.limit:g} s. Try again on a faster connection, or send less data."


class TooManyImagesError(RequestError):
    """The request has more images than allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"A request may contain at most {self.limit} images. Send the others in another request."


class ClientGoneError(RequestError):
    """The client disconnected before the response. Nobody receives this error."""

    def __str__(self) -> str:
        return "The client closed the connection."


class BadImageError(RequestError):
    """One image of a request failed. `index` counts from 0; `error` decides the status."""

    def __init__(self, index: int, error: Fc7Error) -> None:
        super().__init__(index, error)
        self.index, self.error = index, error

    def __str__(self) -> str:
        return f"Image {self.index}: {self.error}"


class AccessError(ServiceError):
    """The caller is not allowed to do this."""


class UnauthorizedError(AccessError):
    """The key is missing or unknown."""

    def __str__(self) -> str:
        return "A valid API key is required. Send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."


class ForbiddenError(AccessError):
    """The key does not have the required scope. The message says which one is required."""


class JobNotFoundError(ServiceError):
    """No job has this id."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        return f"No job has the id {self.job[:80]!r}. GET /v1/jobs lists all jobs."


class UnavailableError(ServiceError):
    """The service cannot answer now. `retry_after` is in whole seconds."""

    retry_after = 1


class QueueFullError(UnavailableError):
    """The limit of images (or bytes of bodies, or jobs) in the server is reached."""

    def __init__(self, what: str, limit: int, retry_after: int) -> None:
        super().__init__(what, limit, retry_after)
        self.what, self.limit, self.retry_after = what, limit, retry_after

    def __str__(self) -> str:
        return f"The server is at its limit of {self.limit:,} {self.what}. Try again in {self.retry_after} s."


class DrainingError(UnavailableError):
    """The server answers the admitted requests, and then stops."""

    def __str__(self) -> str:
        return "The server is shutting down. Try again in a moment."


class NotReadyError(UnavailableError):
    """No model is active, or the index is not open. The message says how to fix it."""

    retry_after = 30


class RunnerDeadError(UnavailableError):
    """The model's device failed permanently. The process exits, so that its supervisor starts a new one."""

    retry_after = 5

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The model stopped working: {self.reason.rstrip('.')}. The server exits and is restarted if it runs under "
            "a supervisor. Its log shows the cause."
        )


class MemoryShortError(UnavailableError):
    """There is not enough memory to load another version. `needed` and `available` are in bytes."""

    retry_after = 30

    def __init__(self, model: str, needed: int, available: int) -> None:
        super().__init__(model, needed, available)
        self.model, self.needed, self.available = model, needed, available

    def __str__(self) -> str:
        return (
            f"Loading {self.model} temporarily needs {self.needed / 1e6:,.0f} MB of memory, but only "
            f"{self.available / 1e6:,.0f} MB are available. Give the service more memory, lower FC7_MAX_LOADED, or run "
            f"fc7 models activate {self.model} and restart the service."
        )


class ModelNotLoadedError(UnavailableError):
    """A version is not in memory, or not any more."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"The model {self.model} is not in memory. Try again."


class ConflictError(ServiceError):
    """The request conflicts with the current state."""


class ActivationRunningError(ConflictError):
    """Another version is being activated."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"Another activation is running ({self.model}). Try again when it is done."


class TooManyModelsError(ConflictError):
    """The limit of versions in memory is reached, and none of them can be removed."""

    def __init__(self, limit: int, loaded: Sequence[str]) -> None:
        super().__init__(limit, tuple(loaded))
        self.limit, self.loaded = limit, tuple(loaded)

    def __str__(self) -> str:
        return (
            f"At most {self.limit} versions may be in memory, and {', '.join(self.loaded)} must stay loaded. "
            "Raise FC7_MAX_LOADED, or omit the model from the request."
        )


class DeadlineError(ServiceError):
    """Decoding, queueing and running together took longer than the deadline."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"The response was not ready within {self.limit:g} s. Try again, or send fewer images per request."
