"""Parses JSON bodies with images as data: URIs, keys of indexed images and vectors.

Guarantees: every error names the position of the wrong value and the rule; a vector has 4,096 finite values that the
index can store; base64 is decoded in pieces, so that other threads can run in between.
Out of scope: fetching http(s) URLs, which would let clients send requests from the server to its own network;
percent-encoded data: URIs; decoding images.
References: RFC 2397 (data: URIs); RFC 4648, section 4 (base64).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS
from service.api.bodies.body import MAX_EXAMPLES, Body, Example
from service.errors import BodyMalformedError, ParameterError, TooManyImagesError

_HEADER: Final = re.compile(r"data:[^,;]{0,200}(?:;[^,;]{0,200}){0,10}?;base64,", re.IGNORECASE)
_URL: Final = re.compile(r"\s*https?:", re.IGNORECASE)
_PIECE: Final = 1 << 20  # characters; a multiple of 4
_MAX_HEADER: Final = 4096
_LARGEST: Final = 65504.0  # float16
_SPACE: Final = b" \t\r\n"
_NO_URLS: Final = (
    "is an http(s) URL. fc7 never fetches URLs, because a client could then reach the server's own network. Send the "
    "bytes of the image as a data: URI, or as the body"
)


def parse_images(document: Any, max_images: int, *, others: frozenset[str] = frozenset()) -> Body:
    """Parse {"image": DATA_URI} or {"images": [DATA_URI, ...]}. others: further names that are accepted.

    Raises BodyMalformedError, TooManyImagesError.
    """
    fields = _object(document, "the body", {"image", "images", *others})
    metadata = fields.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise BodyMalformedError(f"metadata must be a JSON object, but is {_kind(metadata)}.")
    images = _images(fields, max_images)
    if images is None:
        raise BodyMalformedError('The body must have "image", a data: URI, or "images", a list of them.')
    return Body(images, [None] * len(images), metadata)


def parse_search(document: Any, max_images: int) -> Body:
    """Parse a search by images, by vectors, or by positive and negative examples.

    Raises BodyMalformedError, ParameterError for a vector or an example that is not valid, TooManyImagesError.
    """
    fields = _object(document, "the body", {"image", "images", "vector", "vectors", "positive", "negative"})
    given = [
        names
        for names in (("image",), ("images",), ("vector",), ("vectors",), ("positive", "negative"))
        if fields.keys() & set(names)
    ]
    if len(given) != 1:
        found = " and ".join("/".join(names) for names in given) or "none of them"
        raise BodyMalformedError(
            'The body of a search must have exactly one of "image", "images", "vector", "vectors" and "positive" '
            f'(with or without "negative"), but has {found}.'
        )
    images = _images(fields, max_images)
    if images is not None:
        return Body(images, [None] * len(images))
    if "vector" in fields:
        return Body([], [], vectors=[parse_vector(fields["vector"], "vector")])
    if "vectors" in fields:
        values = _list(fields["vectors"], "vectors", MAX_EXAMPLES)
        return Body([], [], vectors=[parse_vector(value, f"vectors[{i}]") for i, value in enumerate(values)])
    lists = {name: _as_list(fields.get(name, [])) for name in ("positive", "negative")}
    check_examples(len(lists["positive"]), sum(map(len, lists.values())))
    positive, negative = (
        [_example(value, f"{name}[{number}]") for number, value in enumerate(values)] for name, values in lists.items()
    )
    if sum(example.image is not None for example in (*positive, *negative)) > max_images:
        raise TooManyImagesError(max_images)
    return Body([], [], positive=positive, negative=negative)


def check_examples(positive: int, examples: int) -> None:
    """Check the numbers of positive examples, and of all examples. Raises ParameterError."""
    if examples > MAX_EXAMPLES:
        raise ParameterError("positive", f"{examples} examples", f"at most {MAX_EXAMPLES} in all", MAX_EXAMPLES)
    if not positive:
        raise ParameterError("positive", "[]", "at least one example; negative ones alone do not say what to find")


def decode_data_uri(value: Any, name: str) -> bytes:
    """Return the bytes of a base64 data: URI, whatever its media type; "" after the comma gives no bytes.

    name: where the URI is, for the error. Raises BodyMalformedError.
    """
    if not isinstance(value, str):
        raise BodyMalformedError(f"{name} must be a data: URI, but is {_kind(value)}.")
    if _URL.match(value):
        raise BodyMalformedError(f"{name} {_NO_URLS}.")
    header = _HEADER.match(value, 0, _MAX_HEADER)
    if header is None:
        raise BodyMalformedError(
            f"{name} must be a data: URI such as data:image/png;base64,iVBORw0..., but starts with {value[:20]!a}."
        )
    try:
        return decode_base64(value[header.end() :])
    except ValueError as error:
        raise BodyMalformedError(f"{name} is not valid base64 ({error}).") from None


def decode_base64(text: str) -> bytes:
    """Decode base64; spaces and line ends are ignored, and the padding may be missing. Raises ValueError."""
    if not text.isascii():
        raise ValueError("it has characters that are not ASCII")
    data = text.encode("ascii").translate(None, _SPACE)
    data += b"=" * (-len(data) % 4)
    pieces = (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
    try:
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def parse_vector(value: Any, name: str) -> NDArray[np.float32]:
    """Return a vector, float32 [4096], from a list of numbers, or from the base64 of its bytes (little-endian).

    name: where the vector is, for the error. Raises ParameterError.
    """
    expected = f"{DIMENSIONS:,} numbers, or the base64 of as many float32 (little-endian)"
    if isinstance(value, str):
        try:
            data = decode_base64(value)
        except ValueError as error:
            raise ParameterError(name, f"text that is not base64 ({error})", expected) from None
        if len(data) != 4 * DIMENSIONS:
            raise ParameterError(name, f"base64 of {len(data):,} bytes", f"{expected}, {4 * DIMENSIONS:,} bytes")
        vector = np.frombuffer(data, "<f4").astype(np.float32)
    elif isinstance(value, list):
        if len(value) != DIMENSIONS:
            raise ParameterError(name, f"a list of {len(value):,} values", expected)
        if not all(map(_is_number, value)):
            raise ParameterError(name, "a list with values that are not numbers", expected)
        vector = np.array([float(each) if abs(each) <= _LARGEST else np.nan for each in value], np.float32)
    else:
        raise ParameterError(name, _kind(value), expected)
    check_vector(vector, name)
    return vector


def check_vector(vector: NDArray[np.float32], name: str) -> None:
    """Raise ParameterError unless all values are finite and can be stored as float16."""
    if not bool((np.abs(vector) <= _LARGEST).all()):  # also false for NaN
        raise ParameterError(name, "a vector", f"finite values within ±{_LARGEST:g}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _example(value: Any, name: str) -> Example:
    """Parse a key, a data: URI, a list of numbers, or an object with one of "key", "image" and "vector"."""
    if isinstance(value, list):
        return Example(vector=parse_vector(value, name))
    if isinstance(value, str):
        return Example(image=decode_data_uri(value, name)) if value[:5].lower() == "data:" else Example(key=value)
    if isinstance(value, dict) and len(value) == 1:
        [(kind, inner)] = value.items()
        if kind == "key" and isinstance(inner, str):
            return Example(key=inner)
        if kind == "image":
            return Example(image=decode_data_uri(inner, f"{name}.image"))
        if kind == "vector":
            return Example(vector=parse_vector(inner, f"{name}.vector"))
    raise ParameterError(
        name, _kind(value), 'a key, a data: URI, a list of numbers, or {"key": ...}, {"image": ...} or {"vector": ...}'
    )


def _images(fields: Mapping[str, Any], max_images: int) -> list[bytes] | None:
    """Return the images of a body, or None if it has neither "image" nor "images"."""
    if "image" in fields and "images" in fields:
        raise BodyMalformedError('The body has both "image" and "images": send one of them.')
    if "image" in fields:
        return [decode_data_uri(fields["image"], "image")]
    if "images" not in fields:
        return None
    values = _list(fields["images"], "images")
    if len(values) > max_images:
        raise TooManyImagesError(max_images)
    return [decode_data_uri(value, f"images[{number}]") for number, value in enumerate(values)]


def _list(value: Any, name: str, limit: int | None = None) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise BodyMalformedError(f"{name} must be a list with at least one entry, but is {_kind(value)}.")
    if limit is not None and len(value) > limit:
        raise ParameterError(name, f"{len(value):,} entries", f"at most {limit}", limit)
    return value


def _as_list(value: Any) -> Sequence[Any]:
    """Return a list of examples; a single one may be given without a list, unless it is a list of numbers."""
    if isinstance(value, list) and not (value and all(map(_is_number, value))):
        return value
    return [value]


def _object(value: Any, name: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BodyMalformedError(f"Expected a JSON object for {name}, but found {_kind(value)}.")
    if unknown := value.keys() - known:
        raise BodyMalformedError(
            f"{min(unknown)[:80]!a} is not a name of {name}. The names are {', '.join(sorted(known))}."
        )
    return value


def _kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text" if value else "an empty text"
        case list():
            return f"a list of {len(value):,} values"
        case _:
            return "an object"
