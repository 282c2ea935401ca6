"""Parses the request of OpenAI's embeddings API, with images as data: URIs in `input`.

Out of scope: embedding text or tokens, which an AlexNet cannot.
References: https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from index.records import DIMENSIONS
from service.api.bodies.json_images import decode_data_uri
from service.api.schemas.embeddings import Encoding
from service.errors import BodyMalformedError, ParameterError, TooManyImagesError

_NAMES: Final = frozenset({"input", "model", "encoding_format", "dimensions", "user"})


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A request for the vectors of images. model: as in a `model` parameter; None for the active version."""

    images: list[bytes]
    model: str | None
    encoding: Encoding


def parse_embeddings(document: Any, max_images: int) -> EmbeddingsRequest:
    """Parse a request. Raises BodyMalformedError, ParameterError, TooManyImagesError."""
    if not isinstance(document, dict) or "input" not in document:
        raise BodyMalformedError('The body must be a JSON object with "input": data: URIs of images.')
    if unknown := document.keys() - _NAMES:
        raise BodyMalformedError(f"{min(unknown)[:80]!a} is not supported. Supported are {', '.join(sorted(_NAMES))}.")
    model = document.get("model")
    if model is not None and (not isinstance(model, str) or len(model) > 80):
        raise ParameterError("model", str(model)[:80], "NAME:VERSION or NAME")
    encoding = document.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise ParameterError("encoding_format", str(encoding)[:80], "float or base64")
    dimensions = document.get("dimensions", DIMENSIONS)
    if type(dimensions) is not int or dimensions != DIMENSIONS:
        raise ParameterError("dimensions", str(dimensions)[:80], f"{DIMENSIONS}, the length of fc7")
    values = document["input"]
    if isinstance(values, str):
        return EmbeddingsRequest([_image(values, "input")], model, encoding)
    if not isinstance(values, list) or not values:
        raise BodyMalformedError("input must be a data: URI of an image, or a list of them with at least one entry.")
    if len(values) > max_images:
        raise TooManyImagesError(max_images)
    images = [_image(value, f"input[{number}]") for number, value in enumerate(values)]
    return EmbeddingsRequest(images, model, encoding)


def _image(value: Any, name: str) -> bytes:
    try:
        return decode_data_uri(value, name)
    except BodyMalformedError as error:
        raise BodyMalformedError(f"{error} fc7 embeds images only, not text or tokens.") from None
