"""The answers of `POST /v1/embed` and, in OpenAI's form, `POST /v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.api.schemas.answers import ModelName

Encoding = Literal["float", "base64"]
_EMBEDDING = Field(description="4,096 numbers or, with encoding_format=base64, their bytes as float32, little-endian.")


def encoded(vector: NDArray[np.float32], encoding: Encoding) -> list[float] | str:
    """Return a vector as JSON. Both encodings keep every bit."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values


class EmbedResult(BaseModel):
    """The fc7 vector of one image."""

    embedding: list[float] | str = _EMBEDDING


class EmbedAnswer(BaseModel):
    """One result for each image, in the order of the request. Only vectors of the same model can be compared."""

    model: ModelName
    dimensions: int
    results: list[EmbedResult]


class OpenAIEmbedding(BaseModel):
    """The fc7 vector of one image. `index` is its position in the request."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = _EMBEDDING


class OpenAIUsage(BaseModel):
    """Always 0: images have no tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(BaseModel):
    """One entry for each image, in the order of the request. `model` is NAME:VERSION."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage
