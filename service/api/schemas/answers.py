"""Answers about images: classes and neighbours, and the model that gave them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from index.records import Neighbour
from index.voting import Votes
from model_store.artifact import Artifact
from model_store.novelty.reference import Novelty
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
    """A class and its probability, from 0 to 1. index: null for a class that the network does not have."""

    index: int | None
    label: str
    probability: float

    @classmethod
    def best(cls, probabilities: NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[Prediction]:
        """Return the `k` most probable classes of one image. `probabilities` is float32 [classes]."""
        indices, values = top_k(probabilities[None], k)
        pairs = zip(indices[0].tolist(), values[0].tolist(), strict=True)
        return [cls(index=i, label=labels[i], probability=value) for i, value in pairs]


class NoveltyInfo(BaseModel):
    """How unusual an image is among the images that the model was trained on.

    `distance`: Euclidean distance in fc7 to the 10th nearest training image of the reference. `percentile`: share of
    the model's validation images that are less unusual, by this distance or by their appearance (sharpness, contrast
    and colors), from 0 to 100. `unknown`: whether that is more than the threshold, so that the model has not learned to
    classify such an image.
    """

    distance: float
    percentile: float
    unknown: bool

    @classmethod
    def of(cls, novelty: Novelty | None, threshold: float) -> NoveltyInfo | None:
        """Return the novelty of one image, or None if the version has no reference. threshold: 0 to 1."""
        return None if novelty is None else cls.model_validate(novelty.to_dict(threshold))


class EvidenceInfo(BaseModel):
    """An indexed image that voted. weight: its share of the votes, from 0 to 1; thumbnail: path of its thumbnail."""

    key: str
    label: str
    distance: float
    weight: float
    thumbnail: str


class ClassifyResult(BaseModel):
    """The most probable classes of one image, most probable first.

    `novelty` is null if the version was published without a reference. `evidence`: with by=neighbours, the images that
    voted, nearest first. `explanation`: of the first class, with explain=true.
    """

    predictions: list[Prediction]
    novelty: NoveltyInfo | None
    evidence: list[EvidenceInfo] | None = Field(default=None, exclude_if=lambda value: value is None)
    explanation: DrawnExplanation | None = Field(default=None, exclude_if=lambda value: value is None)

    @classmethod
    def of(
        cls, probabilities: NDArray[np.float32], labels: tuple[str, ...], k: int, novelty: NoveltyInfo | None
    ) -> ClassifyResult:
        """Return the `k` most probable classes of one image. `probabilities` is float32 [classes]."""
        found = Prediction.best(probabilities, labels, k)
        return cls(predictions=found, novelty=novelty)

    @classmethod
    def of_votes(
        cls, votes: Votes, labels: tuple[str, ...], k: int, novelty: NoveltyInfo | None, root_path: str
    ) -> ClassifyResult:
        """Return the `k` classes with the most votes. labels: of the network. root_path: the prefix of links."""
        index_of = {label: number for number, label in enumerate(labels)}
        return cls(
            predictions=[
                Prediction(index=index_of.get(label), label=label, probability=share)
                for label, share in votes.classes[:k]
            ],
            novelty=novelty,
            evidence=[
                EvidenceInfo(
                    key=each.neighbour.key,
                    label=each.label,
                    distance=each.neighbour.distance,
                    weight=each.weight,
                    thumbnail=thumbnail_path(each.neighbour.key, root_path),
                )
                for each in votes.evidence
            ],
        )


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
    """The most similar indexed images of one image, nearest first.

    `predictions`, the most probable classes, are part of the answer with include=classes. `novelty` is part of it with
    include=novelty, which is the default, if the search is with an image. It is null if the version was published
    without a reference.
    """

    neighbours: list[NeighbourInfo]
    predictions: list[Prediction] = []
    novelty: NoveltyInfo | None = None

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
    """One result for each image or vector, in the order of the request, or a single one for several examples.

    `mode` is the search mode that was used.
    """

    model: ModelName
    mode: Literal["exact", "fast", "codes"]
    results: list[SearchResult]
