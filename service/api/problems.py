"""Maps every error to an HTTP response.

Guarantees: every `Fc7Error` has a status in `STATUS`, through its class or its nearest ancestor. All error responses,
including those of the framework, are RFC 9457 problems or, below `/v2`, the Open Inference Protocol's `{"error": ...}`.
Unexpected exceptions become a 500 without details. No response contains an absolute path of the server's folders.
Out of scope: describing bugs to clients; the log has the traceback.
References: RFC 9457 (Problem Details for HTTP APIs), RFC 6750, 3 (WWW-Authenticate of a Bearer key).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from index import errors as index_errors
from model_store import errors as model_errors
from model_store.errors import Fc7Error
from model_store.head import errors as head_errors
from model_store.runtime.errors import NotExplainableError
from service import errors
from service.api.label_studio import errors as label_studio_errors
from service.backup import BackupError, BackupNotFoundError
from service.indexing import errors as job_errors
from service.inference.errors import ClassNotFoundError, NoReferenceError, VectorNotFoundError
from service.observability.request_log import notes_of
from service.settings import Settings, variable

PROBLEM_TYPE = "application/problem+json"
INFERENCE_PATH = "/v2"


@dataclass(frozen=True, slots=True)
class Kind:
    """The HTTP form of a class of errors. `slug` is the end of the problem's type; `title` is constant."""

    status: int
    slug: str
    title: str


STATUS: Mapping[type[Fc7Error], Kind] = {
    # 400: the body cannot be read
    model_errors.ImageUnreadableError: Kind(400, "image-unreadable", "Unreadable image"),
    label_studio_errors.LabelConfigError: Kind(422, "label-config", "Labeling configuration not supported"),
    label_studio_errors.TaskImageError: Kind(422, "task-image", "Image of a task cannot be used"),
    label_studio_errors.LabelStudioRefusedError: Kind(422, "task-image-refused", "Address of an image not allowed"),
    errors.BodyMalformedError: Kind(400, "body-malformed", "Malformed body"),
    errors.RequestError: Kind(400, "bad-request", "Bad request"),
    errors.HostMalformedError: Kind(400, "host-malformed", "Invalid Host header"),
    errors.HostNotAllowedError: Kind(421, "host-not-allowed", "Host not allowed"),
    # 401, 403, 429: API keys and origins
    errors.UnauthorizedError: Kind(401, "unauthorized", "API key required"),
    errors.KeyExpiredError: Kind(401, "key-expired", "API key expired"),
    errors.RateLimitError: Kind(429, "rate-limited", "Too many requests"),
    errors.AccessError: Kind(403, "forbidden", "Forbidden"),
    errors.OriginNotAllowedError: Kind(403, "origin-not-allowed", "Origin not allowed"),
    # 404, 409: the requested resource
    BackupNotFoundError: Kind(404, "no-such-backup", "Backup not found"),
    BackupError: Kind(409, "backup", "Backup cannot be used"),
    index_errors.SnapshotNotFoundError: Kind(404, "no-such-snapshot", "Snapshot not found"),
    index_errors.SnapshotError: Kind(409, "snapshot", "Snapshot cannot be used"),
    index_errors.KeyNotFoundError: Kind(404, "no-such-image", "Image not found"),
    job_errors.JobNotFoundError: Kind(404, "no-such-job", "Job not found"),
    job_errors.JobResultError: Kind(404, "no-job-result", "Job has no result file"),
    errors.ReportNotFoundError: Kind(404, "no-such-report", "Report file not found"),
    model_errors.ModelNotFoundError: Kind(404, "no-such-model", "Model not found"),
    model_errors.PrecisionNotFoundError: Kind(409, "no-such-precision", "Precision not available"),
    model_errors.NoPreviousModelError: Kind(409, "no-previous-model", "No previous version"),
    model_errors.NoBetterThanBaselineError: Kind(409, "no-better-than-baseline", "Model no better than the baseline"),
    model_errors.ModelInUseError: Kind(409, "model-in-use", "Model in use"),
    NotExplainableError: Kind(409, "not-explainable", "No graph for explanations"),
    VectorNotFoundError: Kind(409, "no-such-vector", "Image without a vector of the model"),
    index_errors.IndexModelError: Kind(409, "index-of-another-model", "Index belongs to another model"),
    head_errors.UnlabelledError: Kind(409, "no-labels", "No labeled images"),
    errors.ConflictError: Kind(409, "conflict", "Conflict"),
    job_errors.JobStateError: Kind(409, "job-state", "Job cannot be retried"),
    NoReferenceError: Kind(409, "no-novelty-reference", "Model without a reference for novelty"),
    errors.ActivationRunningError: Kind(409, "activation-running", "Activation already running"),
    errors.TooManyModelsError: Kind(409, "too-many-models", "Too many models loaded"),
    # 408, 413, 415, 422: limits, formats and parameters
    errors.BodyTimeoutError: Kind(408, "body-timeout", "Body timeout"),
    errors.BodyTooLargeError: Kind(413, "body-too-large", "Body too large"),
    errors.TooManyImagesError: Kind(413, "too-many-images", "Too many images"),
    model_errors.ImageFormatError: Kind(415, "image-format", "Image format not supported"),
    errors.BodyTypeError: Kind(415, "content-type", "Content-Type not supported"),
    errors.BodyEncodingError: Kind(415, "content-encoding", "Content-Encoding not supported"),
    errors.ParameterError: Kind(422, "parameter", "Invalid parameter"),
    ClassNotFoundError: Kind(422, "class-not-found", "Class not found"),
    errors.BadImageError: Kind(422, "bad-image", "Invalid image"),
    model_errors.ImageError: Kind(422, "image", "Invalid image"),
    model_errors.ImageTooLargeError: Kind(422, "image-too-large", "Too many pixels in the image"),
    model_errors.DecodeTimeError: Kind(422, "decode-time", "Decoding the image takes too long"),
    model_errors.DecodeMemoryError: Kind(422, "decode-memory", "Decoding the image takes too much memory"),
    model_errors.DecoderCrashError: Kind(422, "decoder-crash", "Image decoder stopped"),
    model_errors.ModelNameError: Kind(422, "model-name", "Invalid model name"),
    head_errors.HeadError: Kind(422, "head", "Last layer cannot be fitted"),
    index_errors.MilvusUnsupportedError: Kind(409, "index-on-milvus", "Not supported with Milvus"),
    index_errors.IndexLimitError: Kind(422, "index-limit", "Index limit exceeded"),
    index_errors.ModeUnavailableError: Kind(409, "mode-unavailable", "Search mode not available"),
    index_errors.CursorError: Kind(422, "cursor", "Invalid cursor"),
    index_errors.ImageArchiveError: Kind(422, "archive", "Invalid archive"),
    index_errors.FilterError: Kind(422, "where", "Invalid filter"),
    index_errors.InvalidKeyError: Kind(422, "image-key", "Invalid image key"),
    index_errors.MetadataError: Kind(422, "metadata", "Invalid metadata"),
    model_errors.TableError: Kind(422, "table", "Unreadable table"),
    errors.ClientGoneError: Kind(499, "client-gone", "Client disconnected"),
    # 503, 504, 507: temporary
    errors.UnavailableError: Kind(503, "unavailable", "Service unavailable"),
    model_errors.DecoderBusyError: Kind(503, "decoder-busy", "Too many expensive images"),
    errors.QueueFullError: Kind(503, "queue-full", "Queue full"),
    errors.DrainingError: Kind(503, "draining", "Shutting down"),
    errors.NotReadyError: Kind(503, "not-ready", "Service not ready"),
    job_errors.JobStoreError: Kind(503, "jobs-unavailable", "Jobs unavailable"),
    errors.MemoryShortError: Kind(503, "memory-short", "Not enough memory"),
    errors.ResourcesExhaustedError: Kind(503, "resources-exhausted", "Out of resources"),
    errors.VersionsPinnedError: Kind(503, "models-in-use", "All loaded models are in use"),
    errors.ModelNotLoadedError: Kind(503, "model-not-loaded", "Model not loaded"),
    errors.RunnerDeadError: Kind(503, "model-stopped", "Model stopped"),
    model_errors.NoActiveModelError: Kind(503, "no-model", "No active model"),
    index_errors.IndexUnavailableError: Kind(503, "index-unavailable", "Index unavailable"),
    index_errors.IndexUnreachableError: Kind(503, "index-unreachable", "Milvus unreachable"),
    index_errors.IndexLockedError: Kind(503, "index-locked", "Index locked"),
    index_errors.IndexReadOnlyError: Kind(503, "index-read-only", "Index is read-only"),
    model_errors.ActivationError: Kind(503, "activation-not-saved", "Activation not saved"),
    errors.DeadlineError: Kind(504, "deadline", "Deadline exceeded"),
    index_errors.IndexFullError: Kind(507, "index-full", "Disk full"),
    errors.StorageError: Kind(507, "storage", "Disk full or failing"),
    model_errors.ActivationDiskFullError: Kind(507, "disk-full", "Disk full"),
    # 500: server errors that a client cannot fix
    errors.SettingError: Kind(500, "setting", "Invalid setting"),
    errors.ServiceError: Kind(500, "service", "Service error"),
    index_errors.ImageIndexError: Kind(500, "index", "Index error"),
    model_errors.ShapeError: Kind(500, "shape", "Unexpected array shape"),
    model_errors.MissingExtraError: Kind(409, "missing-extra", "Missing package"),
    model_errors.ArtifactError: Kind(500, "model-files", "Invalid model files"),
    model_errors.ModelArchiveError: Kind(500, "model-archive", "Invalid model archive"),
    model_errors.PublishError: Kind(500, "publish", "Publishing failed"),
    model_errors.RunnerError: Kind(500, "run-failed", "Inference failed"),
    model_errors.TrainingError: Kind(500, "training", "Training failed"),
}
_INTERNAL = Kind(500, "internal", "Internal server error")


def kind_of(error: Fc7Error) -> Kind:
    """Return the entry of `STATUS` for the error's class or its nearest ancestor; for BadImageError, its `error`'s."""
    if isinstance(error, errors.BadImageError):
        error = error.error
    return next((STATUS[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUS), _INTERNAL)


def problem(
    path: str, kind: Kind, detail: str, headers: Mapping[str, str] | None = None, **more: object
) -> JSONResponse:
    """Return an RFC 9457 problem or, for a `path` below `/v2`, an error of the Open Inference Protocol."""
    detail = detail.encode("utf-8", "backslashreplace").decode()  # a name from the request can have lone surrogates
    if path == INFERENCE_PATH or path.startswith(INFERENCE_PATH + "/"):
        return JSONResponse({"error": detail}, kind.status, headers)
    slug = f"urn:fc7:problem:{kind.slug}"
    content = {"type": slug, "title": kind.title, "status": kind.status, "detail": detail} | more
    return JSONResponse(content, kind.status, headers, media_type=PROBLEM_TYPE)


async def handle_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: return the response for an expected error, and note the reason for the request's log line."""
    notes, path = notes_of(request.scope), request.scope["path"]
    if isinstance(error, Fc7Error):
        kind = kind_of(error)
        notes.reason = kind.slug
        if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            request.app.state.fc7.log.error("failed", request_id=notes.request_id, exc_info=error)
        return problem_of(path, error, request.app.state.fc7.settings)
    if isinstance(error, RequestValidationError):
        notes.reason = STATUS[errors.ParameterError].slug
        return _validation_problem(path, error)
    if isinstance(error, HTTPException):  # the framework's own errors, such as 404 and 405
        phrase = HTTPStatus(error.status_code).phrase
        kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
        return problem(path, kind, str(error.detail), error.headers)
    raise error


def refuse(scope: Scope, error: Fc7Error) -> JSONResponse:
    """Return the response with which a middleware rejects a request, and note the reason for its log line."""
    notes_of(scope).reason = kind_of(error).slug
    return problem_of(scope["path"], error)


def without_folders(text: str, settings: Settings) -> str:
    """Replace the absolute paths of the server's folders in a message by the names of their settings."""
    if os.sep not in text:
        return text
    places = [(settings.home, variable("home"))]
    if settings.index_uri and "://" not in settings.index_uri:
        places.append((Path(settings.index_uri), variable("index_uri")))
    for place, name in places:
        for path in (os.path.realpath(place), os.path.abspath(place)):  # noqa: PTH100 - `Path` keeps "..", and so differs
            text = text.replace(path, name) if len(path) > 1 else text
    return text


def problem_of(path: str, error: Fc7Error, settings: Settings | None = None) -> JSONResponse:
    """Return the response for an `Fc7Error`, with `limit`, `index` and `parameter` if the error has them.

    settings: the folders that the detail must not show.
    """
    more: dict[str, object] = {}
    detail = str(error) if settings is None else without_folders(str(error), settings)
    if isinstance(error, errors.BadImageError):
        more["index"] = error.index
        error = error.error
    if isinstance(error, errors.ParameterError):
        more["parameter"] = error.name
    limit = getattr(error, "limit", None)
    if limit is not None:
        more["limit"] = limit
    kind = kind_of(error)
    headers = {}
    if kind.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = str(getattr(error, "retry_after", errors.NotReadyError.retry_after))
    elif isinstance(error, errors.BodyEncodingError):
        headers["Accept-Encoding"] = error.accepted
    elif kind.status == HTTPStatus.UNAUTHORIZED:
        reason = "" if type(error) is errors.UnauthorizedError else ', error="invalid_token"'
        headers["WWW-Authenticate"] = f'Bearer realm="fc7"{reason}'
    return problem(path, kind, detail, headers, **more)


def problem_of_bug(path: str) -> JSONResponse:
    """Return the response for an unexpected exception, without details."""
    return problem(path, _INTERNAL, "An unexpected error occurred. The server's log has the details.")


def _validation_problem(path: str, error: RequestValidationError) -> JSONResponse:
    """Return 422 with the name, the value and the valid range of the first invalid parameter."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        detail = f"{name} is not a parameter of this operation."
    else:
        detail = f"{name}={first.get('input')} is not valid: {first['msg'][:1].lower()}{first['msg'][1:]}."
    return problem(path, STATUS[errors.ParameterError], detail, parameter=name)
