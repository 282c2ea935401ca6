"""Errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Problem(BaseModel):
    """An error (RFC 9457). `limit` is the limit that was exceeded; `index` is the invalid image's position, from 0."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    limit: int | float | None = None
    index: int | None = None


class InferenceProblem(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str
