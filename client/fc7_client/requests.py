"""Builds requests from Python values, and reads answers into models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from fc7_client.errors import UnexpectedAnswerError
from fc7_client.models import Answer
from fc7_client.steps import Flow, Request, Work

A = TypeVar("A", bound=Answer)
ImageSource: TypeAlias = bytes | str | os.PathLike[str]
"""The bytes of an image file, or its path."""
Where: TypeAlias = str | Sequence[str] | None
"""Conditions on metadata, such as "label:cat" or "year>=2020"; all must match."""


def read(source: ImageSource) -> bytes:
    """Return the bytes of an image file."""
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def read_all(sources: Iterable[ImageSource]) -> Flow[list[bytes]]:
    """Return the bytes of image files."""
    found = list(sources)
    data: list[bytes] = yield Work(lambda: [read(source) for source in found])
    return data


def parameters(**values: Any) -> dict[str, Any]:
    """Return the query parameters that have a value. Lists become repeated parameters."""
    return {name.rstrip("_"): value for name, value in values.items() if value is not None}


def image_parts(data: Sequence[bytes]) -> list[tuple[str, str, bytes]]:
    """Return the parts of a multipart body for images without keys."""
    return [("file", f"image-{position}", each) for position, each in enumerate(data)]


def image_path(key: str, rest: str = "") -> str:
    """Return the path of an indexed image. Slashes of the key are encoded, so that they do not separate `rest`."""
    return f"/v1/images/{segment(key)}{rest}"


def segment(text: str) -> str:
    """Return the text as one segment of a path."""
    return quote(text, safe="")


def json_request(
    method: str, path: str, document: Mapping[str, Any], *, params: Mapping[str, Any] | None = None, **options: Any
) -> Request:
    """Return a request with a JSON body."""
    content = json.dumps(document).encode()
    return Request(
        method, path, params=params or {}, headers={"Content-Type": "application/json"}, content=content, **options
    )


def ask(request: Request, answer: type[A]) -> Flow[A]:
    """Send a request, and read its answer. Raises UnexpectedAnswerError."""
    response: httpx.Response = yield request
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise UnexpectedAnswerError(str(response.url), f"{where}: {first['msg']}") from error
