"""The shapes of bodies and answers over HTTP, version 1: with queries.py, what the OpenAPI document is made of.

Does not: compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from index.records import AddOutcome, ImageRecord, IndexStats, Neighbour, SnapshotManifest, Space
from model_store.artifact import Artifact
from model_store.runtime.runner import top_k
from service.indexing.jobs import JobInfo
from service.indexing.reembedder import MigrationState, Progress
from service.inference.batch import Row


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: int

    @classmethod
    def of(cls, artifact: Artifact) -> ModelName:
        """Name the model of a version."""
        return cls(name=artifact.name, version=artifact.version)

    @classmethod
    def of_reference(cls, reference: str) -> ModelName:
        """Name the model of a reference with its version, such as "solar:1" or, of an index, "solar:1 (int8)"."""
        name, _, version = reference.partition(" ")[0].rpartition(":")
        return cls(name=name, version=int(version))


class Prediction(BaseModel):
    """A class and how probable it is, from 0 to 1."""

    index: int
    label: str
    probability: float


class ClassifyResult(BaseModel):
    """The most probable classes of one image, most probable first."""

    predictions: list[Prediction]

    @classmethod
    def of(cls, row: Row, labels: tuple[str, ...], k: int) -> ClassifyResult:
        """Name the `k` most probable classes of a row."""
        indices, values = top_k(row.probabilities[None], k)
        pairs = zip(indices[0].tolist(), values[0].tolist(), strict=True)
        return cls(predictions=[Prediction(index=i, label=labels[i], probability=value) for i, value in pairs])


class ClassifyAnswer(BaseModel):
    """One result an image, in the order they were sent."""

    model: ModelName
    results: list[ClassifyResult]


class NeighbourInfo(BaseModel):
    """An indexed image and its Euclidean distance; `thumbnail` is the path of its picture."""

    key: str
    distance: float
    metadata: dict[str, Any]
    thumbnail: str

    @classmethod
    def of(cls, neighbour: Neighbour) -> NeighbourInfo:
        """Show a neighbour."""
        return cls(
            key=neighbour.key,
            distance=neighbour.distance,
            metadata=neighbour.metadata,
            thumbnail=thumbnail_path(neighbour.key),
        )


class SearchResult(BaseModel):
    """The nearest images of one image, nearest first."""

    neighbours: list[NeighbourInfo]

    @classmethod
    def of(cls, neighbours: list[Neighbour]) -> SearchResult:
        """Show the neighbours of one image."""
        return cls(neighbours=[NeighbourInfo.of(neighbour) for neighbour in neighbours])


class SearchAnswer(BaseModel):
    """One result an image, in the order they were sent. `mode`: how it was searched."""

    model: ModelName
    mode: Literal["exact", "fast", "codes"]
    results: list[SearchResult]


class ImageInfo(BaseModel):
    """An indexed image. Size in bytes, width and height of the upright original in pixels, times in UTC."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: dict[str, Any]
    added: datetime
    updated: datetime
    thumbnail: str | None = Field(description="Path of its picture; null when none was kept.")

    @classmethod
    def of(cls, record: ImageRecord) -> ImageInfo:
        """Show a record."""
        return cls(
            key=record.key,
            sha256=record.sha256,
            size=record.size,
            width=record.width,
            height=record.height,
            metadata=record.metadata,
            added=record.added,
            updated=record.updated,
            thumbnail=thumbnail_path(record.key) if record.has_picture else None,
        )


class ImagePage(BaseModel):
    """Some of the indexed images; `next_cursor` is null on the last page."""

    images: list[ImageInfo]
    next_cursor: str | None


class AddResult(BaseModel):
    """What an add did: added (a new key), replaced (other bytes under it) or unchanged."""

    outcome: AddOutcome
    image: ImageInfo


class AddAnswer(BaseModel):
    """One result an image, in the order they were sent."""

    model: ModelName
    results: list[AddResult]


class SpaceInfo(BaseModel):
    """The vectors of one model. searched: search uses them; kept: it did before, and may at once again."""

    model: str
    fingerprint: str
    vectors: int
    missing_vectors: int = Field(description="Images without a vector among them.")
    searched: bool
    kept: bool


class MigrationInfo(BaseModel):
    """A migration to another model: images without a vector at its start, embedded since, and not embeddable."""

    model: str
    state: MigrationState
    total: int
    done: int
    skipped: int
    skipped_keys: dict[str, str] = Field(description="The first images that cannot be embedded, and why.")
    detail: str


class IndexInfo(BaseModel):
    """Counts and sizes (bytes) of the index, and the model that made the vectors that search uses."""

    images: int
    vectors: int
    bytes_on_disk: int
    bytes_in_memory: int
    mode: str
    model: str
    fingerprint: str
    missing_vectors: int = Field(
        description="Images that search does not find, because they have no vector of this model."
    )
    spaces: list[SpaceInfo]
    migration: MigrationInfo | None = Field(description="The last migration to another model; null if none was needed.")

    @classmethod
    def of(cls, stats: IndexStats, spaces: Sequence[Space], progress: Progress | None) -> IndexInfo:
        """Show the statistics of an index."""
        return cls(
            images=stats.images,
            vectors=stats.vectors,
            bytes_on_disk=stats.bytes_on_disk,
            bytes_in_memory=stats.bytes_in_memory,
            mode=stats.mode,
            model=stats.model,
            fingerprint=stats.fingerprint,
            missing_vectors=next((space.missing_vectors for space in spaces if space.active), 0),
            spaces=[
                SpaceInfo(
                    model=space.model,
                    fingerprint=space.fingerprint,
                    vectors=space.vectors,
                    missing_vectors=space.missing_vectors,
                    searched=space.active,
                    kept=space.kept,
                )
                for space in spaces
            ],
            migration=None if progress is None else MigrationInfo.model_validate(asdict(progress)),
        )


class PairInfo(BaseModel):
    """Two images that are nearly the same, and their Euclidean distance."""

    first: str
    second: str
    distance: float


class DuplicatesAnswer(BaseModel):
    """Pairs of images, nearest first."""

    pairs: list[PairInfo]


class SnapshotInfo(BaseModel):
    """A snapshot of the index: its folder on the server, its size in bytes, what is in it and when it was taken."""

    name: str
    path: str
    created: datetime
    images: int
    vectors: int
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, manifest: SnapshotManifest) -> SnapshotInfo:
        """Show a snapshot."""
        return cls(
            name=path.name,
            path=str(path),
            created=manifest.created,
            images=manifest.images,
            vectors=manifest.vectors,
            size=manifest.size,
            sha256=manifest.sha256,
        )


class MetadataPatch(BaseModel):
    """A merge patch (RFC 7396) of an image. Only its metadata can be changed: names with null are removed."""

    metadata: dict[str, Any] | None


class JobsAnswer(BaseModel):
    """All jobs, newest first."""

    jobs: list[JobInfo]


class DeletedAnswer(BaseModel):
    """How many images were deleted."""

    deleted: int


class ModelInfo(BaseModel):
    """A published version. `active`: it is the one to serve; `serving`: it is the one that answers now.

    loaded: it is in memory, so that a request which names it need not wait for it.
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
    """The version that answers from now on, the one before it, and how long the switch took.

    index_status: ready (search uses this model already), or migrating (search uses the previous model until every
    image is embedded: see GET /v1/index).
    """

    model: ModelName
    previous: ModelName | None
    seconds: float
    index_status: Literal["ready", "migrating"]


class ModelsAnswer(BaseModel):
    """All published versions."""

    models: list[ModelInfo]


class Ready(BaseModel):
    """The service answers. `notes` say what it cannot do although it is ready."""

    status: Literal["ready"]
    model: ModelName
    device: str
    notes: list[str]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Problem(BaseModel):
    """RFC 9457: what went wrong. `limit` and `index` (of the bad image, from 0) where they help."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    limit: int | float | None = None
    index: int | None = None


class InferenceTensor(BaseModel):
    """A tensor of the Open Inference Protocol; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class InferenceServer(BaseModel):
    """What the server is, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class InferenceModel(BaseModel):
    """What the model takes and gives, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[InferenceTensor]
    outputs: list[InferenceTensor]


class InferenceAnswer(BaseModel):
    """An inference: `data` or, after the JSON, raw bytes (`parameters.binary_data_size`) of each output."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[dict[str, Any]]


class InferenceProblem(BaseModel):
    """What went wrong, in the Open Inference Protocol."""

    error: str


def thumbnail_path(key: str) -> str:
    """Return the path of the picture of `key`: whole in one segment, so that no key is mistaken for a longer path."""
    return f"/v1/images/{quote(key, safe='')}/thumbnail"
