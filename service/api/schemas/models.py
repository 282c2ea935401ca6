"""Published versions, and health."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from service.api.schemas.answers import ModelName


class ModelInfo(BaseModel):
    """A published version.

    `active`: it is the version chosen to serve. `serving`: it answers requests now. `loaded`: it is in memory, so that
    requests that name it do not have to wait until it is loaded.
    """

    name: str
    version: int
    created: datetime
    architecture: str
    classes: list[str]
    metrics: dict[str, Any]
    fingerprint: str
    active: bool
    serving: bool
    loaded: bool


class ActivationAnswer(BaseModel):
    """The version that now answers, the previous one, and the duration of the switch.

    `index_status`: ready (searches use this model already) or migrating (searches use the previous model until all
    images are embedded again; see GET /v1/index).
    """

    model: ModelName
    previous: ModelName | None
    seconds: float
    index_status: Literal["ready", "migrating"]


class ModelsAnswer(BaseModel):
    """All published versions."""

    models: list[ModelInfo]


class ReportFile(BaseModel):
    """A file of the report that the training wrote. `size` is in bytes; `path` is where to get it."""

    name: str
    media_type: str
    size: int
    sha256: str
    path: str


class ReportAnswer(BaseModel):
    """The files of a version's report. There are none if the version was imported."""

    files: list[ReportFile]


class Ready(BaseModel):
    """The service is ready. `notes` lists its limitations."""

    status: Literal["ready"]
    model: ModelName
    device: str
    notes: list[str]


class Alive(BaseModel):
    """The process is alive."""

    status: Literal["alive"]
