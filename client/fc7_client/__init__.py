"""Typed client for an fc7 server: `Client`, and `AsyncClient` for asyncio.

with Client("http://127.0.0.1:8000") as client:
    print(client.classify("photo.jpg").results[0].predictions[0].label)
"""

from __future__ import annotations

from fc7_client.client import AsyncClient, Client
from fc7_client.errors import (
    ConflictError,
    ConnectionFailedError,
    DeadlineError,
    Fc7ClientError,
    ForbiddenError,
    InvalidImageError,
    InvalidRequestError,
    JobError,
    JobTimeoutError,
    NotFoundError,
    ProblemError,
    RateLimitedError,
    ServerError,
    StorageFullError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
)
from fc7_client.folder import FolderReport, folder_label
from fc7_client.retry import Retry

__all__ = [
    "AsyncClient",
    "Client",
    "ConflictError",
    "ConnectionFailedError",
    "DeadlineError",
    "Fc7ClientError",
    "FolderReport",
    "ForbiddenError",
    "InvalidImageError",
    "InvalidRequestError",
    "JobError",
    "JobTimeoutError",
    "NotFoundError",
    "ProblemError",
    "RateLimitedError",
    "Retry",
    "ServerError",
    "StorageFullError",
    "UnauthorizedError",
    "UnavailableError",
    "UnexpectedAnswerError",
    "folder_label",
]
