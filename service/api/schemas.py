"""Request and response bodies of the HTTP API, version 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from index.records import AddOutcome, ImageRecord, IndexStats, Neighbour, Space
from model_store.artifact import Artifact
from model_store.runtime.runner import top_k
from service.indexing.reembedder import MigrationState, Progress


class ModelName(BaseModel):
    """The model that produced the result."""

    name: str
    version: int

    @classmethod
    def of(cls, artifact: Artifact) -> ModelName:
        """Return the name and version of a published model."""
        return cls(name=artifact.name, version=artifact.version)

    @classmethod
    def of_reference(cls, reference: str) -> ModelName:
        """Parse a reference with a version, such as "solar:1" or, from an index, "solar:1 (int8)"."""
        name, _, version = reference.partition(" ")[0].rpartition(":")
        return cls(name=name, version=int(version))


class Prediction(BaseModel):
    """A class and its probability, from 0 to 1."""

    index: int
    label: str
    probability: float


class ClassifyResult(BaseModel):
    """The most probable classes of one image, most probable first."""

    predictions: list[Prediction]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], labels: tuple[str, ...], k: int) -> ClassifyResult:
        """Return the `k` most probable classes of one image. `probabilities` is float32 [classes]."""
        indices, values = top_k(probabilities[None], k)
        pairs = zip(indices[0].tolist(), values[0].tolist(), strict=True)
        return cls(predictions=[Prediction(index=i, label=labels[i], probability=value) for i, value in pairs])


class ClassifyAnswer(BaseModel):
    """One result for each image, in the order of the request."""

    model: ModelName
    results: list[ClassifyResult]


class NeighbourInfo(BaseModel):
    """An indexed image and its distance. `thumbnail` is the path of its thumbnail."""

    key: str
    distance: float
    metadata: dict[str, Any]
    thumbnail: str


class SearchResult(BaseModel):
    """The most similar indexed images of one image, nearest first."""

    neighbours: list[NeighbourInfo]

    @classmethod
    def of(cls, neighbours: list[Neighbour], root_path: str) -> SearchResult:
        """Convert the neighbours of one image. root_path: the prefix of its links."""
        return cls(
            neighbours=[
                NeighbourInfo(
                    key=near.key,
                    distance=near.distance,
                    metadata=near.metadata,
                    thumbnail=thumbnail_path(near.key, root_path),
                )
                for near in neighbours
            ]
        )


class SearchAnswer(BaseModel):
    """One result for each image, in the order of the request. `mode` is the search mode that was used."""

    model: ModelName
    mode: Literal["exact", "fast", "codes"]
    results: list[SearchResult]


class ImageInfo(BaseModel):
    """An indexed image. `size` is in bytes; `width` and `height` are in pixels, after rotation; times are in UTC."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: dict[str, Any]
    added: datetime
    updated: datetime
    thumbnail: str | None = Field(description="Path of the thumbnail. Null if none is stored.")

    @classmethod
    def of(cls, record: ImageRecord, root_path: str) -> ImageInfo:
        """Convert a record of the index. root_path: the prefix of its links."""
        thumbnail = thumbnail_path(record.key, root_path) if record.has_picture else None
        return cls.model_validate(asdict(record) | {"thumbnail": thumbnail})


class ImagePage(BaseModel):
    """A page of indexed images. `next_cursor` is null on the last page."""

    images: list[ImageInfo]
    next_cursor: str | None


class AddResult(BaseModel):
    """The result of adding an image: added (new key), replaced (the key had another image or metadata) or unchanged."""

    outcome: AddOutcome
    image: ImageInfo


class AddAnswer(BaseModel):
    """One result for each image, in the order of the request."""

    model: ModelName
    results: list[AddResult]


class SpaceInfo(BaseModel):
    """A vector space: the vectors of one model.

    `searched`: searches use this space. `kept`: it was searched before and is kept, so that going back to its model is
    immediate.
    """

    model: str
    fingerprint: str
    vectors: int
    missing_vectors: int = Field(description="Number of images without a vector in this space.")
    searched: bool
    kept: bool


class MigrationInfo(BaseModel):
    """Progress of the migration of the index to another model.

    `total`: images that had no vector of the model. `done`: images embedded so far. `skipped`: images that cannot be
    embedded.
    """

    model: str
    state: MigrationState
    total: int
    done: int
    skipped: int
    skipped_keys: dict[str, str] = Field(description="The first skipped images, each with the reason.")
    detail: str


class FastCodeInfo(BaseModel):
    """The short codes of the mode fast.

    `recall`: share of the 10 exact neighbors that it finds, as last measured. `changed`: number of vectors added and
    removed since the codes were learned, relative to the vectors that exist. `learned`: when that was.
    """

    recall: float | None
    changed: float
    learned: datetime


class DeviceInfo(BaseModel):
    """Copies of the index on a CUDA device. The CPU searches the other vectors and codes of `fast`."""

    name: str
    vectors: int
    codes: int
    bytes: int


class IndexInfo(BaseModel):
    """Counts and sizes of the index (in bytes), and the model whose vectors are searched."""

    images: int
    vectors: int
    bytes_on_disk: int
    bytes_in_memory: int
    mode: str
    model: str
    fingerprint: str
    outdated: int = Field(
        description="Number of images that an earlier version of fc7 prepared. They are prepared again when they are "
        "added again: `fc7 index build DIR`."
    )
    missing_vectors: int = Field(
        description="Number of images that searches cannot find, because they have no vector of this model."
    )
    fast: FastCodeInfo | None = Field(description="The short codes of the mode fast. Null if there are none.")
    device: DeviceInfo | None = Field(description="The CUDA device that searches. Null if the CPU does.")
    spaces: list[SpaceInfo]
    migration: MigrationInfo | None = Field(description="The last migration to another model. Null if there was none.")

    @classmethod
    def of(cls, stats: IndexStats, spaces: Sequence[Space], progress: Progress | None) -> IndexInfo:
        """Convert the statistics of an index."""
        return cls(
            **asdict(stats),
            missing_vectors=next((space.missing_vectors for space in spaces if space.active), 0),
            spaces=[SpaceInfo.model_validate(asdict(space) | {"searched": space.active}) for space in spaces],
            migration=None if progress is None else MigrationInfo.model_validate(asdict(progress)),
        )


class SnapshotInfo(BaseModel):
    """A snapshot of the index. `path` is its folder below FC7_HOME; `size` is in bytes."""

    name: str
    path: str
    created: datetime
    images: int
    vectors: int
    size: int
    sha256: str


class MetadataPatch(BaseModel):
    """A JSON merge patch (RFC 7396) of an image's metadata. Names with the value null are removed."""

    metadata: dict[str, Any] | None


class DeletedAnswer(BaseModel):
    """The number of deleted images."""

    deleted: int


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


class Ready(BaseModel):
    """The service is ready. `notes` lists its limitations."""

    status: Literal["ready"]
    model: ModelName
    device: str
    notes: list[str]


class Alive(BaseModel):
    """The process is alive."""

    status: Literal["alive"]


class Problem(BaseModel):
    """An error (RFC 9457). `limit` is the limit that was exceeded; `index` is the invalid image's position, from 0."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    limit: int | float | None = None
    index: int | None = None


class InferenceTensor(BaseModel):
    """A tensor of the Open Inference Protocol. A size of -1 means any size."""

    name: str
    datatype: str
    shape: list[int]


class InferenceServer(BaseModel):
    """Server metadata of the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class InferenceModel(BaseModel):
    """Model metadata of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[InferenceTensor]
    outputs: list[InferenceTensor]


class InferenceAnswer(BaseModel):
    """An inference response. An output has `data` or, after the JSON, raw bytes (`parameters.binary_data_size`)."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[dict[str, Any]]


class InferenceProblem(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


def image_path(key: str, root_path: str) -> str:
    """Return the path of an image below `root_path`, with its key encoded as a single path segment."""
    return f"{root_path}/v1/images/{quote(key, safe='')}"


def thumbnail_path(key: str, root_path: str) -> str:
    """Return the path of the thumbnail of `key`."""
    return f"{image_path(key, root_path)}/thumbnail"
