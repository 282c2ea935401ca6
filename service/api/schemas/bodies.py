"""JSON request bodies with images, as JSON schemas: the parsers in service/api/bodies read them without pydantic."""

from __future__ import annotations

from typing import Any, Final

_URI: Final = {
    "type": "string",
    "pattern": "^data:",
    "description": "An image as a data: URI, such as data:image/png;base64,iVBORw0... http(s) URLs are rejected.",
}
_NUMBERS: Final = {"type": "array", "items": {"type": "number"}, "minItems": 4096, "maxItems": 4096}
_VECTOR: Final = {
    "oneOf": [_NUMBERS, {"type": "string", "description": "Base64 of 4,096 float32, little-endian."}],
    "description": "An fc7 vector of 4,096 finite numbers.",
}
_EXAMPLE: Final = {
    "oneOf": [
        {"type": "string", "description": "The key of an indexed image, or an image as a data: URI."},
        _NUMBERS,
        {"type": "object", "properties": {"key": {"type": "string"}, "image": _URI, "vector": _VECTOR}},
    ]
}
_IMAGES: Final = {"image": _URI, "images": {"type": "array", "items": _URI, "minItems": 1}}

IMAGES: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "properties": _IMAGES,
    "description": "Exactly one of the two.",
}
ONE_IMAGE: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["image"],
    "properties": {"image": _URI, "metadata": {"type": "object", "additionalProperties": True}},
}
SEARCH: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **_IMAGES,
        "vector": _VECTOR,
        "vectors": {"type": "array", "items": _VECTOR, "minItems": 1, "maxItems": 100},
        "positive": {"type": "array", "items": _EXAMPLE, "minItems": 1, "maxItems": 100},
        "negative": {"type": "array", "items": _EXAMPLE, "maxItems": 99},
    },
    "description": "One of `image`, `images`, `vector` and `vectors`, or `positive` with or without `negative`.",
}
OPENAI: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["input"],
    "properties": {
        "input": {"oneOf": [_URI, {"type": "array", "items": _URI, "minItems": 1}]},
        "model": {"type": "string", "description": "NAME:VERSION, or NAME. The default is the active version."},
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "enum": [4096]},
        "user": {"type": "string", "description": "Ignored."},
    },
}
