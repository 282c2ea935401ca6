"""Filters over metadata: the grammar of `where`, its parser, and the type under which a field is compared.

    where     = field operator values
    field     = name {"." name}            a path into nested objects
    name      = letters, digits, "_", "-"  or anything as a JSON string: "shot at"
    operator  = ":" | "=" | ">" | ">=" | "<" | "<="
    values    = value {"," value}          matches any of them; several only after ":" or "="
    value     = text without a comma that does not start with a quote, or a JSON string: "a, b"

An image must match all filters. A field that holds a list matches if one element does. The type of the field's values
decides the comparison: numbers by size, strings by code point, booleans as true and false. A value in quotes is always
compared as a string.

Guarantees: a filter on a field that no image ever had, or with a value of another type than the field's, is rejected.
Out of scope: lists of lists, lists of objects, substring matches, and images without a field.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from index.errors import FilterError
from index.fields import BARE_NAME, FieldType, Scalar, field_name

EXISTS = "exists"
MAX_CONDITIONS = 16
MAX_VALUES = 100
_NAME = re.compile(rf'"(?:[^"\\]|\\.)*"|{BARE_NAME}')
_VALUE = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([^",][^,]*))\s*(?:,|$)')
_OPERATOR = re.compile(r"\s*(>=|<=|:|=|>|<)")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # \d would match the digits of every script
# Fields by name, each with the types its values ever had and the id under which this (field, type) is stored.
Fields = Mapping[str, Mapping[FieldType, int]]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a filter, as written. A `quoted` value is always a string.

    bare: whether a value without quotes is also compared with strings, as in a written filter.
    """

    text: str
    quoted: bool
    bare: bool = True

    def as_type(self, kind: FieldType) -> Scalar | None:
        """Return the value converted to `kind`, or None if it is not of that type."""
        if kind is FieldType.STRING:
            return self.text if self.quoted or self.bare else None
        if self.quoted:
            return None
        if kind is FieldType.BOOLEAN:
            return {"true": True, "false": False}.get(self.text)
        if _NUMBER.fullmatch(self.text) is None:
            return None
        number = json.loads(self.text) if len(self.text) < 400 else float(self.text)
        return number if isinstance(number, float) or -(2**63) <= number < 2**63 else float(number)


@dataclass(frozen=True, slots=True)
class Condition:
    """One parsed `where`: the field's stored name, one of the operators = > >= < <=, and the values.

    The operator `exists`, which has no values and cannot be written, matches the images that have the field.
    """

    text: str
    field: str
    operator: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions that must all match. Equal filters have equal digests."""

    conditions: tuple[Condition, ...]

    @property
    def digest(self) -> str:
        """A short hash of the conditions, for cursors."""
        parts = sorted((c.field, c.operator, sorted((v.text, v.quoted) for v in c.values)) for c in self.conditions)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def parse_where(texts: Sequence[str]) -> Where | None:
    """Parse the filters in `texts`; return None if there are none. Raises FilterError."""
    if len(texts) > MAX_CONDITIONS:
        raise FilterError(texts[MAX_CONDITIONS], f"exceeds the limit of {MAX_CONDITIONS} filters")
    return Where(tuple(_parse(text) for text in texts)) if texts else None


def parse_field(text: str) -> tuple[str, ...]:
    """Return the path that a field's name stands for, such as camera.model. Raises FilterError."""
    path, end = _parse_path(text)
    if end < len(text):
        raise FilterError(text, "is not the name of a field")
    return path


def has_field(path: Sequence[str], where: Where | None = None) -> Where:
    """Return the filter that matches the images with a text, number or boolean in this field, and `where`."""
    name = field_name(path)
    return Where((*(where.conditions if where else ()), Condition(name, name, EXISTS, ())))


def has_value(path: Sequence[str], value: Scalar) -> Where:
    """Return the filter that matches the images with this value in a field: 7 does not match the string "7"."""
    name = field_name(path)
    text = value if isinstance(value, str) else json.dumps(value)
    return Where((Condition(f"{name}:{text}", name, "=", (Value(text, isinstance(value, str), bare=False),)),))


def compared_types(condition: Condition, fields: Fields) -> dict[FieldType, int]:
    """Return the types under which the condition's field is compared, each with the id of (field, type).

    Raises FilterError for a field that is not in `fields`, and for a value that is of none of the field's types.
    """
    known = fields.get(condition.field)
    if condition.operator == EXISTS:
        return dict(known or {})
    if known is None:
        similar = difflib.get_close_matches(condition.field, fields, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise FilterError(condition.text, f"names the field {condition.field}, which no image has had{hint}")
    usable = {kind: id_ for kind, id_ in known.items() if any(v.as_type(kind) is not None for v in condition.values)}
    if condition.operator != "=":
        usable.pop(FieldType.BOOLEAN, None)
        if FieldType.NUMBER in usable:  # "2020" is a valid string too, but a number is meant
            usable = {FieldType.NUMBER: usable[FieldType.NUMBER]}
    for value in condition.values:
        if not any(value.as_type(kind) is not None for kind in usable):
            kinds = " or ".join(sorted(f"{kind.value}s" for kind in known))
            operand = "a range" if condition.operator != "=" else f"{value.text[:40]!r}"
            raise FilterError(condition.text, f"compares {condition.field}, which holds {kinds}, with {operand}")
    return usable


def _parse_path(text: str) -> tuple[tuple[str, ...], int]:
    """Return the path at the start of `text`, and the position after it. Raises FilterError."""
    segments: list[str] = []
    position = 0
    while True:
        found = _NAME.match(text, position)
        if found is None:
            raise FilterError(text, "does not start with a field name")
        segments.append(_unquote(text, found.group()) if found.group().startswith('"') else found.group())
        position = found.end()
        if text[position : position + 1] != ".":
            return tuple(segments), position
        position += 1


def _parse(text: str) -> Condition:
    segments, position = _parse_path(text)
    operator = _OPERATOR.match(text, position)
    if operator is None:
        raise FilterError(text, "has no operator after the field name")
    values: list[Value] = []
    position = operator.end()
    while position < len(text) or not values or text[position - 1] == ",":
        found = _VALUE.match(text, position)
        if found is None:
            raise FilterError(text, "has an empty value or a quote that is not closed")
        quoted, bare = found.groups()
        values.append(Value(_unquote(text, quoted), True) if quoted is not None else Value(bare.strip(), False))
        position = found.end()
    sign = operator.group(1).replace(":", "=")
    if len(values) > MAX_VALUES or (sign != "=" and len(values) > 1):
        raise FilterError(text, f"has {len(values)} values, but at most {MAX_VALUES if sign == '=' else 1} allowed")
    return Condition(text, field_name(segments), sign, tuple(values))


def _unquote(text: str, quoted: str) -> str:
    try:
        value: str = json.loads(quoted)
        value.encode()
    except ValueError:
        raise FilterError(text, f"contains {quoted[:40]}, which is not a valid JSON string") from None
    return value
