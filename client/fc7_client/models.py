"""Answers of the server as typed, immutable objects.

Guarantees: the names are those of the HTTP API; times are aware datetimes in UTC. A member that a newer server adds is
ignored.
References: docs/openapi.json
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Answer(BaseModel):
    """Base class of all answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ModelName(Answer):
    """The model that produced a result. As text: NAME:VERSION."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class Prediction(Answer):
    """A class and its probability, from 0 to 1. index: None for a class that the network does not have."""

    index: int | None
    label: str
    probability: float


class Novelty(Answer):
    """How unusual an image is among those that the model was trained on. percentile: 0 to 100."""

    distance: float
    percentile: float
    unknown: bool


class Evidence(Answer):
    """An indexed image that voted for a class. weight: its share of the votes, 0 to 1."""

    key: str
    label: str
    distance: float
    weight: float
    thumbnail: str


class Explanation(Answer):
    """What in an image speaks for a class, or for the similarity to the indexed image `near`.

    grid: rows from top to bottom for the crop of 224x224 pixels that the model sees, with values from 0 to 1. image:
    the heat map over the crop as a data URI, if it was asked for.
    """

    class_: str | None = Field(alias="class")
    index: int | None
    near: str | None = None
    distance: float | None = None
    grid: list[list[float]]
    image: str | None = None


class ClassifyResult(Answer):
    """The most probable classes of one image, most probable first. evidence: with by="neighbours"."""

    predictions: list[Prediction]
    novelty: Novelty | None = None
    evidence: list[Evidence] | None = None
    explanation: Explanation | None = None


class ClassifyAnswer(Answer):
    """One result for each image, in the order of the request."""

    model: ModelName
    results: list[ClassifyResult]


class Neighbour(Answer):
    """An indexed image and its distance. thumbnail: path of its thumbnail."""

    key: str
    distance: float
    metadata: dict[str, Any]
    thumbnail: str


class SearchResult(Answer):
    """The most similar indexed images of one image, nearest first."""

    neighbours: list[Neighbour]
    predictions: list[Prediction] = []
    novelty: Novelty | None = None


class SearchAnswer(Answer):
    """One result for each image or vector, in the order of the request, or one for several examples."""

    model: ModelName
    mode: str
    results: list[SearchResult]


class ExplainAnswer(Answer):
    """The explanation of one image."""

    model: ModelName
    explanation: Explanation


class EmbedResult(Answer):
    """The fc7 vector of one image: 4,096 numbers, each a float32."""

    embedding: list[float]

    @field_validator("embedding", mode="before")
    @classmethod
    def _decode(cls, value: object) -> object:
        """Decode base64 of float32, little-endian, which is a fourth of the size of the numbers as text."""
        if not isinstance(value, str):
            return value
        numbers = array("f", b64decode(value))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()


class EmbedAnswer(Answer):
    """One result for each image, in the order of the request. Only vectors of the same model can be compared."""

    model: ModelName
    dimensions: int
    results: list[EmbedResult]


class Image(Answer):
    """An indexed image. `size` is in bytes; `width` and `height` are in pixels, after rotation."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: dict[str, Any]
    added: datetime
    updated: datetime
    thumbnail: str | None


class ImagePage(Answer):
    """A page of indexed images. next_cursor: None on the last page."""

    images: list[Image]
    next_cursor: str | None


class AddResult(Answer):
    """The result of adding an image. outcome: added, replaced or unchanged."""

    outcome: str
    image: Image


class AddAnswer(Answer):
    """One result for each image, in the order of the request."""

    model: ModelName
    results: list[AddResult]


class MetadataChanged(Answer):
    """How many images matched, and how many of them have other metadata now."""

    matched: int
    changed: int


class FieldValue(Answer):
    """A value of a metadata field, and how many images have it."""

    value: bool | int | float | str
    count: int


class MetadataField(Answer):
    """A metadata field with values of one type. values: the most frequent ones first."""

    name: str
    type: str
    images: int
    distinct: int
    values: list[FieldValue]
    minimum: int | float | None
    maximum: int | float | None


class FieldsAnswer(Answer):
    """The metadata fields of the matching images. complete: False if some are not listed."""

    images: int
    fields: list[MetadataField]
    complete: bool


class LabelShare(Answer):
    """A label and its share among the labeled neighbors of an image, from 0 to 1."""

    label: str
    share: float


class Suggestion(Answer):
    """An image to label. reason: uncertain, different or representative; text: the reason as a sentence."""

    key: str
    thumbnail: str
    reason: str
    text: str
    score: float
    covers: int
    margin: float | None
    distance: float | None
    labels: list[LabelShare]


class SuggestionsAnswer(Answer):
    """Images to label, the most useful first."""

    model: ModelName
    field: str
    unlabeled: int
    labeled: int
    compared: int
    note: str
    suggestions: list[Suggestion]


class Skipped(Answer):
    """An image that could not be used, and the reason."""

    name: str
    reason: str
    kind: str = ""


class Job(Answer):
    """A job and its progress: `seen` of `total` are done. state: waiting, running, done, failed or cancelled.

    error: why it failed. waiting_for: the error that a waiting job waits out. result: what it found, or None.
    """

    id: str
    kind: str
    state: str
    parameters: dict[str, Any] = {}
    created: datetime
    ended: datetime | None = None
    total: int
    seen: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    processed: int = 0
    skipped: int = 0
    skipped_by_reason: dict[str, int] = {}
    skipped_images: list[Skipped] = []
    ignored: int = 0
    archive_bytes: int = 0
    result: dict[str, Any] | None = None
    result_bytes: int = 0
    waiting_for: str | None = None
    next_try: datetime | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job is done, failed or cancelled."""
        return self.state not in ("waiting", "running")


class Jobs(Answer):
    """Jobs, newest first."""

    jobs: list[Job]


class SkippedPage(Answer):
    """Skipped entries of a job. next_cursor: None on the last page."""

    skipped: list[Skipped]
    next_cursor: int | None


class Backup(Answer):
    """A backup. path: its folder below the server's FC7_HOME. images: None without an index. size: in bytes."""

    name: str
    path: str
    created: datetime
    fc7: str
    versions: list[str]
    active: str | None
    images: int | None
    size: int


class Backups(Answer):
    """The backups, oldest first."""

    backups: list[Backup]


class Snapshot(Answer):
    """A snapshot of the index. path: its folder below the server's FC7_HOME. size, sha256: of its catalog.db."""

    name: str
    path: str
    created: datetime
    images: int
    vectors: int
    size: int
    sha256: str


class Snapshots(Answer):
    """The snapshots, oldest first."""

    snapshots: list[Snapshot]


class ModelInfo(Answer):
    """A published version. serving: it answers requests now; loaded: it is in memory."""

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


class Models(Answer):
    """All published versions."""

    models: list[ModelInfo]


class Activation(Answer):
    """The version that now answers, and the previous one. index_status: ready or migrating."""

    model: ModelName
    previous: ModelName | None
    seconds: float
    index_status: str


class IndexInfo(Answer):
    """Counts and sizes of the index, in bytes, and the model whose vectors are searched."""

    images: int
    vectors: int
    bytes_on_disk: int
    bytes_in_memory: int
    mode: str
    model: str
    fingerprint: str
    outdated: int
    missing_vectors: int
    fast: dict[str, Any] | None
    device: dict[str, Any] | None
    spaces: list[dict[str, Any]]
    migration: dict[str, Any] | None


class Ready(Answer):
    """The server is ready. notes: its limitations."""

    status: str
    model: ModelName
    device: str
    notes: list[str]
