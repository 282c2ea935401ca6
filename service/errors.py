"""Errors of this room.

Fc7Error
└── ServiceError
    ├── SettingError          a setting with a value that cannot be
    ├── RequestError          a request that cannot be answered as it is
    │   ├── ParameterError        a parameter outside its range
    │   ├── BodyMalformedError    a multipart body that breaks its own rules
    │   ├── BodyTypeError         a Content-Type that is not taken
    │   ├── BodyEncodingError     a Content-Encoding that is not taken
    │   ├── BodyTooLargeError     more bytes than the limit
    │   ├── BodyTimeoutError      the body did not arrive in time
    │   ├── TooManyImagesError    more images than the limit
    │   ├── ClientGoneError       the client left before its answer
    │   └── BadImageError         one image of several; its cause decides
    ├── AccessError
    │   ├── UnauthorizedError     no key, or an unknown one
    │   └── ForbiddenError        a key without the scope
    ├── UnavailableError      not now: try again after `retry_after` seconds
    │   ├── QueueFullError        as many images admitted as the queue takes
    │   ├── DrainingError         the server is shutting down
    │   ├── NotReadyError         no model to answer with
    │   ├── RunnerDeadError       the model's device failed for good
    │   ├── MemoryShortError      no memory to load another version
    │   └── ModelNotLoadedError   a version that just left memory
    ├── ConflictError         what is asked for does not go with what is there
    │   ├── ActivationRunningError  another version is being activated
    │   └── TooManyModelsError    as many versions in memory as are allowed
    ├── JobNotFoundError      no job of this id
    └── DeadlineError         decoding, waiting and running took too long

Promises: each has its values as attributes, and its text names the thing and the mend.
Does not: know how it is answered over HTTP (see problems.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from model_store.errors import Fc7Error


class ServiceError(Fc7Error):
    """Base of the errors of the service."""


class SettingError(ServiceError):
    """A setting whose value cannot be: the service does not start with it."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(variable, value, expected)
        self.variable, self.value, self.expected = variable, value, expected

    def __str__(self) -> str:
        return f"{self.variable}={self.value}: expected {self.expected}"


class RequestError(ServiceError):
    """A request that cannot be answered as it is."""


class ParameterError(RequestError):
    """A parameter whose value is not in its range."""

    def __init__(self, name: str, value: object, expected: str, limit: int | None = None) -> None:
        super().__init__(name, value, expected, limit)
        self.name, self.value, self.expected, self.limit = name, value, expected, limit

    def __str__(self) -> str:
        return f"{self.name}={self.value}: expected {self.expected}"


class BodyMalformedError(RequestError):
    """The body breaks the rules of its own type. The text says how."""


class BodyTypeError(RequestError):
    """A Content-Type that is not taken."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(found, mend)
        self.found, self.mend = found, mend

    def __str__(self) -> str:
        return f"Content-Type {self.found or '(none)'} is not taken: {self.mend}"


class BodyEncodingError(RequestError):
    """A Content-Encoding that is not taken."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"Content-Encoding {self.found} is not taken: send gzip, deflate, or the body as it is"


class BodyTooLargeError(RequestError):
    """The body has more bytes than the limit. What comes after the limit is not read."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the body is larger than {self.limit:,} bytes: send smaller copies, or fewer images in a request"


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the body did not arrive within {self.limit:g} s"


class TooManyImagesError(RequestError):
    """More images in one request than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"a request takes at most {self.limit} images: send the rest in another one"


class ClientGoneError(RequestError):
    """The client closed the connection before its answer was ready: nobody reads this."""

    def __str__(self) -> str:
        return "the client closed the connection"


class BadImageError(RequestError):
    """One image of a request cannot be taken. `index` counts from 0; `error` decides the status."""

    def __init__(self, index: int, error: Fc7Error) -> None:
        super().__init__(index, error)
        self.index, self.error = index, error

    def __str__(self) -> str:
        return f"image {self.index}: {self.error}"


class AccessError(ServiceError):
    """The caller may not do this."""


class UnauthorizedError(AccessError):
    """No key was sent, or one that is not known."""

    def __str__(self) -> str:
        return "this needs a key: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY' with a key that the server knows"


class ForbiddenError(AccessError):
    """The caller is known, but may not do this. The text says what is missing."""


class JobNotFoundError(ServiceError):
    """No job has this id."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        return f"no job has the id {self.job[:80]!r}; GET /v1/jobs lists them"


class UnavailableError(ServiceError):
    """The service cannot answer now. `retry_after` is a whole number of seconds."""

    retry_after = 1


class QueueFullError(UnavailableError):
    """As many images (or bytes of bodies) are admitted as the server takes at one time."""

    def __init__(self, what: str, limit: int, retry_after: int) -> None:
        super().__init__(what, limit, retry_after)
        self.what, self.limit, self.retry_after = what, limit, retry_after

    def __str__(self) -> str:
        return f"the server holds as many {self.what} as it takes ({self.limit:,}): try again in {self.retry_after} s"


class DrainingError(UnavailableError):
    """The server answers what it admitted and then stops."""

    def __str__(self) -> str:
        return "the server is shutting down: try again in a moment"


class NotReadyError(UnavailableError):
    """There is nothing to answer with. The text says what is missing and how to get it."""

    retry_after = 30


class RunnerDeadError(UnavailableError):
    """The model's device failed and does not come back: the process ends, so that its supervisor starts a new one."""

    retry_after = 5

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the model stopped working: {self.reason}. The server restarts if it is supervised; its log has the cause"
        )


class MemoryShortError(UnavailableError):
    """Loading a version would take more memory than there is. `needed` and `available` in bytes."""

    retry_after = 30

    def __init__(self, model: str, needed: int, available: int) -> None:
        super().__init__(model, needed, available)
        self.model, self.needed, self.available = model, needed, available

    def __str__(self) -> str:
        return (
            f"loading {self.model} takes {self.needed / 1e6:,.0f} MB for a moment, and {self.available / 1e6:,.0f} MB "
            "are available: give the service more memory, lower FC7_MAX_LOADED, or activate it with "
            "fc7 models activate and start the service again"
        )


class ModelNotLoadedError(UnavailableError):
    """A version is not in memory (any more)."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"the model {self.model} is not in memory: try again"


class ConflictError(ServiceError):
    """What is asked for does not go with what is there now."""


class ActivationRunningError(ConflictError):
    """Another version is being activated."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"{self.model} is being activated just now: ask again when that is done"


class TooManyModelsError(ConflictError):
    """As many versions are in memory as are allowed, and all of them are needed."""

    def __init__(self, limit: int, loaded: Sequence[str]) -> None:
        super().__init__(limit, tuple(loaded))
        self.limit, self.loaded = limit, tuple(loaded)

    def __str__(self) -> str:
        return (
            f"{', '.join(self.loaded)} must stay in memory, and at most {self.limit} versions may be there: "
            "raise FC7_MAX_LOADED, or leave the model out of the request"
        )


class DeadlineError(ServiceError):
    """Decoding, waiting and running together took longer than the limit."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the answer was not ready within {self.limit:g} s: try again, or send fewer images in a request"
