"""Answers about images: classes and neighbours, and the model that gave them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from index.records import Neighbour
from model_store.artifact import Artifact
from model_store.runtime.runner import top_k
from service.api.schemas.explanations import DrawnExplanation
from service.api.schemas.links import thumbnail_path


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
    """The most probable classes of one image, most probable first. explanation: of the first one, with explain=true."""

    predictions: list[Prediction]
    explanation: DrawnExplanation | None = Field(None, exclude_if=lambda value: value is None)

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
