"""Facets: which metadata fields the images have, and how often each value occurs.

Guarantees: the size of an answer is bounded, whatever the metadata: at most `MAX_FIELDS` fields, and at most
`MAX_VALUES` values of at most `MAX_LENGTH` characters in all of them.
Out of scope: reading metadata (see index/catalog/queries/facets.py and index/milvus/listing.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from index.fields import FieldType, Scalar, attributes

MAX_FIELDS: Final = 200
MAX_VALUES: Final = 10_000
MAX_LENGTH: Final = 256  # characters of a text


@dataclass(frozen=True, slots=True)
class FieldValue:
    """A value of a field, and how many images have it."""

    value: Scalar
    count: int


@dataclass(frozen=True, slots=True)
class Facet:
    """A metadata field with values of one type.

    images: how many images have it. distinct: number of different values. values: the most frequent ones; equal counts
    by value; texts longer than `MAX_LENGTH` are left out. minimum, maximum: of numbers; None for other types, and for
    numbers beyond those of a float.
    """

    name: str
    type: FieldType
    images: int
    distinct: int
    values: list[FieldValue]
    minimum: int | float | None
    maximum: int | float | None


@dataclass(frozen=True, slots=True)
class Facets:
    """The fields of the matching images, those that most images have first. complete: no field is missing.

    images: how many images match.
    """

    images: int
    fields: list[Facet]
    complete: bool


def values_of_each(limit: int, fields: int) -> int:
    """Return how many values are listed for each of some fields. limit: how many were requested."""
    return max(1, min(limit, MAX_VALUES // max(1, fields)))


def finite(value: Any) -> Any:
    """Return a number, or None if JSON cannot represent it."""
    return value if value is not None and math.isfinite(value) else None


class FacetCounter:
    """Counts the fields of images one by one. field: count this one only."""

    def __init__(self, field: str | None) -> None:
        self._field, self._images = field, 0
        self._counts: dict[tuple[str, FieldType], Counter[Scalar]] = {}
        self._having: Counter[tuple[str, FieldType]] = Counter()

    def add(self, metadata: Mapping[str, Any]) -> None:
        """Count the fields of one image."""
        self._images += 1
        found = [each for each in attributes(metadata) if self._field in (None, each[0])]
        self._having.update({(name, kind) for name, kind, _ in found})
        for name, kind, value in found:
            self._counts.setdefault((name, kind), Counter())[value] += 1

    def result(self, limit: int) -> Facets:
        """Return the fields. limit: number of values for each."""
        fields = sorted(self._having, key=lambda field: (-self._having[field], field))
        each = values_of_each(limit, min(len(fields), MAX_FIELDS))
        found = [
            Facet(name, kind, self._having[name, kind], *_summary(kind, self._counts[name, kind], each))
            for name, kind in fields[:MAX_FIELDS]
        ]
        return Facets(self._images, found, len(fields) <= MAX_FIELDS)


def shown(kind: FieldType, values: Iterable[tuple[Any, int]]) -> list[FieldValue]:
    """Return values with their counts as they are listed; booleans are stored as 0 and 1."""
    return [FieldValue(bool(value) if kind is FieldType.BOOLEAN else value, count) for value, count in values]


def _summary(kind: FieldType, counts: Counter[Any], limit: int) -> tuple[int, list[FieldValue], Any, Any]:
    """Return the number of values, the most frequent ones, the smallest and the largest number."""
    listed = [item for item in counts.items() if _is_listed(kind, item[0])]
    best = sorted(listed, key=lambda item: (-item[1], item[0]))[:limit]
    numbers = counts if kind is FieldType.NUMBER else ()
    low, high = min(numbers, default=None), max(numbers, default=None)
    return len(counts), shown(kind, best), finite(low), finite(high)


def _is_listed(kind: FieldType, value: Any) -> bool:
    if kind is FieldType.STRING:
        return len(value) <= MAX_LENGTH
    return math.isfinite(value)
