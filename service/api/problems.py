"""How every error of fc7 looks over HTTP.

Promises: every `Fc7Error` finds its status in `STATUS`, by its class or the nearest ancestor (a test walks them all);
every answer that is no success is an RFC 9457 problem, also those of the framework, and under `/v2` the Open
Inference Protocol's `{"error": ...}`. Exceptions that nobody foresaw are 500 without details.
Does not: describe a bug to the client; the log has the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from index import errors as index_errors
from model_store import errors as model_errors
from model_store.errors import Fc7Error
from service.errors import (
    AccessError,
    ActivationRunningError,
    BadImageError,
    BodyEncodingError,
    BodyMalformedError,
    BodyTimeoutError,
    BodyTooLargeError,
    BodyTypeError,
    ClientGoneError,
    ConflictError,
    DeadlineError,
    DrainingError,
    JobNotFoundError,
    MemoryShortError,
    ModelNotLoadedError,
    NotReadyError,
    ParameterError,
    QueueFullError,
    RequestError,
    RunnerDeadError,
    ServiceError,
    SettingError,
    TooManyImagesError,
    TooManyModelsError,
    UnauthorizedError,
    UnavailableError,
)

PROBLEM_TYPE = "application/problem+json"
INFERENCE_PATH = "/v2"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a class of errors looks over HTTP. `slug` ends the problem's type, `title` never changes between answers."""

    status: int
    slug: str
    title: str


STATUS: Mapping[type[Fc7Error], Kind] = {
    # 400: what was sent cannot be read
    model_errors.ImageUnreadableError: Kind(400, "image-unreadable", "Not a readable image"),
    BodyMalformedError: Kind(400, "body-malformed", "Malformed body"),
    RequestError: Kind(400, "bad-request", "Bad request"),
    # 401, 403: keys
    UnauthorizedError: Kind(401, "unauthorized", "A key is needed"),
    AccessError: Kind(403, "forbidden", "Not allowed"),
    # 404, 409: the thing asked for
    index_errors.KeyNotFoundError: Kind(404, "no-such-image", "No such image"),
    JobNotFoundError: Kind(404, "no-such-job", "No such job"),
    model_errors.ModelNotFoundError: Kind(404, "no-such-model", "No such model"),
    model_errors.PrecisionNotFoundError: Kind(409, "no-such-precision", "Not in this precision"),
    model_errors.NoPreviousModelError: Kind(409, "no-previous-model", "No model to go back to"),
    model_errors.ModelInUseError: Kind(409, "model-in-use", "The model is in use"),
    index_errors.IndexModelError: Kind(409, "index-of-another-model", "The index was made by another model"),
    ConflictError: Kind(409, "conflict", "Not as things are"),
    ActivationRunningError: Kind(409, "activation-running", "Another activation is running"),
    TooManyModelsError: Kind(409, "too-many-models", "No place for another model"),
    # 408, 413, 415, 422: the limits
    BodyTimeoutError: Kind(408, "body-timeout", "The body came too slowly"),
    BodyTooLargeError: Kind(413, "body-too-large", "Too many bytes"),
    TooManyImagesError: Kind(413, "too-many-images", "Too many images"),
    model_errors.ImageFormatError: Kind(415, "image-format", "Image format not taken"),
    BodyTypeError: Kind(415, "content-type", "Content type not taken"),
    BodyEncodingError: Kind(415, "content-encoding", "Content encoding not taken"),
    ParameterError: Kind(422, "parameter", "Bad parameter"),
    BadImageError: Kind(422, "bad-image", "Bad image"),
    model_errors.ImageError: Kind(422, "image", "Bad image"),
    model_errors.ImageTooLargeError: Kind(422, "image-too-large", "Too many pixels"),
    model_errors.ModelNameError: Kind(422, "model-name", "Not a model's name"),
    index_errors.MilvusUnsupportedError: Kind(409, "index-on-milvus", "Not with an index on Milvus"),
    index_errors.IndexLimitError: Kind(422, "index-limit", "More than the index takes"),
    index_errors.ModeUnavailableError: Kind(409, "mode-unavailable", "No codes for this mode"),
    index_errors.CursorError: Kind(422, "cursor", "Not a cursor of this index"),
    index_errors.ImageArchiveError: Kind(422, "archive", "Not an archive that is taken"),
    index_errors.FilterError: Kind(422, "where", "Not a filter on this index"),
    index_errors.InvalidKeyError: Kind(422, "image-key", "Not a key"),
    index_errors.MetadataError: Kind(422, "metadata", "Bad metadata"),
    ClientGoneError: Kind(499, "client-gone", "The client left"),
    # 503, 504, 507: not now
    UnavailableError: Kind(503, "unavailable", "Not available now"),
    QueueFullError: Kind(503, "queue-full", "The server is full"),
    DrainingError: Kind(503, "draining", "Shutting down"),
    NotReadyError: Kind(503, "not-ready", "Not ready"),
    MemoryShortError: Kind(503, "memory-short", "Not enough memory"),
    ModelNotLoadedError: Kind(503, "model-not-loaded", "The model is not in memory"),
    RunnerDeadError: Kind(503, "model-stopped", "The model stopped"),
    model_errors.NoActiveModelError: Kind(503, "no-model", "No model"),
    index_errors.IndexUnavailableError: Kind(503, "index-unavailable", "The index is not available now"),
    index_errors.IndexUnreachableError: Kind(503, "index-unreachable", "Milvus does not answer"),
    index_errors.IndexReadOnlyError: Kind(503, "index-read-only", "The index cannot be changed now"),
    DeadlineError: Kind(504, "deadline", "Deadline passed"),
    index_errors.IndexFullError: Kind(507, "index-full", "No room for the index"),
    # 500: errors of the server; a client cannot mend them
    SettingError: Kind(500, "setting", "Bad setting"),
    ServiceError: Kind(500, "service", "The service failed"),
    index_errors.ImageIndexError: Kind(500, "index", "The index failed"),
    model_errors.ShapeError: Kind(500, "shape", "A wrong shape inside the server"),
    model_errors.MissingExtraError: Kind(500, "missing-extra", "A package is missing"),
    model_errors.ArtifactError: Kind(500, "model-files", "The model's files are not right"),
    model_errors.ModelArchiveError: Kind(500, "model-archive", "The model's archive is not right"),
    model_errors.PublishError: Kind(500, "publish", "Publishing failed"),
    model_errors.RunnerError: Kind(500, "run-failed", "The model failed on this image"),
    model_errors.TrainingError: Kind(500, "training", "Training failed"),
}


def kind_of(error: Fc7Error) -> Kind:
    """Return how `error` looks over HTTP: the entry of its class or of the nearest ancestor that has one."""
    for ancestor in type(error).__mro__:
        if ancestor in STATUS:
            return STATUS[ancestor]
    return Kind(500, "internal", "The server failed")


class ProblemAnswer(JSONResponse):
    """An RFC 9457 answer: type, title, status, detail and whatever else helps."""

    def __init__(self, kind: Kind, detail: str, headers: Mapping[str, str], more: Mapping[str, Any]) -> None:
        self.detail, self.extra_headers = detail, headers
        slug = f"urn:fc7:problem:{kind.slug}"
        content = {"type": slug, "title": kind.title, "status": kind.status, "detail": detail}
        super().__init__(content | dict(more), kind.status, dict(headers), media_type=PROBLEM_TYPE)

    def for_path(self, path: str) -> JSONResponse:
        """Return the answer as a client of this path reads it: under `/v2` in the Open Inference Protocol's form."""
        if path != INFERENCE_PATH and not path.startswith(INFERENCE_PATH + "/"):
            return self
        return JSONResponse({"error": self.detail}, self.status_code, dict(self.extra_headers))


def problem(kind: Kind, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> ProblemAnswer:
    """Return the answer for `kind`, with its sentence."""
    return ProblemAnswer(kind, detail, headers or {}, more)


def problem_of(error: Fc7Error) -> ProblemAnswer:
    """Return the answer for one of our own errors, with `limit` and `index` where the error has them."""
    more: dict[str, Any] = {}
    if isinstance(error, BadImageError):
        more["index"] = error.index
        detail, error = str(error), error.error
    else:
        detail = str(error)
    if isinstance(error, ParameterError):
        more["parameter"] = error.name
    limit = getattr(error, "limit", None)
    if limit is not None:
        more["limit"] = limit
    kind = kind_of(error)
    headers = {}
    if isinstance(error, UnavailableError):
        headers["Retry-After"] = str(error.retry_after)
    elif kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(NotReadyError.retry_after)
    elif kind.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="fc7"'
    return problem(kind, detail, headers, **more)


def problem_of_validation(error: RequestValidationError) -> ProblemAnswer:
    """Return 422 naming the first bad parameter, its value and its range."""
    errors: Sequence[Any] = error.errors()
    first = errors[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        detail = f"{name} is not a parameter of this path"
    else:
        detail = f"{name}={first.get('input')}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return problem(STATUS[ParameterError], detail, parameter=name)


def problem_of_http(error: HTTPException) -> ProblemAnswer:
    """Return the framework's own refusals (no such path, method not allowed) as problems."""
    phrase = HTTPStatus(error.status_code).phrase
    slug = phrase.lower().replace(" ", "-")
    return problem(Kind(error.status_code, slug, phrase), str(error.detail), error.headers)


def problem_of_bug() -> ProblemAnswer:
    """Return 500 for an exception that nobody foresaw, without a word of it."""
    return problem(Kind(500, "internal", "The server failed"), "an error inside the server; its log has the cause")
