"""Metadata fields: the values inside an image's metadata that filters can compare.

Guarantees: `attributes` finds every string, number and boolean in nested objects and directly in lists.
Out of scope: nulls, lists of lists and objects in lists; filters cannot compare them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

BARE_NAME = r"[\w-]+"
Scalar = str | int | float | bool


class FieldType(StrEnum):
    """Types of values that filters can compare."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"


Attribute = tuple[str, FieldType, Scalar]


def field_name(path: Sequence[str]) -> str:
    """Return a field's name, such as camera.model; parts with special characters are written as JSON strings."""
    return ".".join(part if re.fullmatch(BARE_NAME, part) else json.dumps(part, ensure_ascii=False) for part in path)


def attributes(metadata: Mapping[str, Any]) -> set[Attribute]:
    """Return the (field, type, value) of every value that a filter can compare."""
    return set(_walk(metadata, ()))


def _walk(value: object, path: tuple[str, ...]) -> Iterator[Attribute]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, (*path, name))
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, Mapping | list):
                yield from _walk(item, path)
    elif isinstance(value, bool):
        yield field_name(path), FieldType.BOOLEAN, int(value)
    elif isinstance(value, int | float):
        yield field_name(path), FieldType.NUMBER, _number(value)
    elif isinstance(value, str):
        yield field_name(path), FieldType.STRING, value


def _number(value: int | float) -> int | float:
    """Return a number that SQLite can store: integers beyond 64 bits become the nearest float."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value
