"""Filters over metadata: the grammar of `where`, and its meaning in SQL.

    where     = field operator values
    field     = name {"." name}            a path into nested objects
    name      = letters, digits, "_", "-"  or anything as a JSON string: "shot at"
    operator  = ":" | "=" | ">" | ">=" | "<" | "<="
    values    = value {"," value}          several, after ":" or "=" only: any of them
    value     = text without a comma that does not begin with a quote, or a JSON string: "a, b"

Several filters hold together. A field that holds a list matches when one of its values does. A field is compared as
what it holds: numbers by size, texts by code point, booleans as true and false; a JSON string is always a text.

Promises: a filter on a field that no image ever had, or with a value of another type than the field's, is refused.
Does not: look into lists of lists or of objects, match parts of texts, find images that lack a field.
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

MAX_CONDITIONS = 16
MAX_VALUES = 100
_NAME = re.compile(rf'"(?:[^"\\]|\\.)*"|{BARE_NAME}')
_VALUE = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([^",][^,]*))\s*(?:,|$)')
_OPERATOR = re.compile(r"\s*(>=|<=|:|=|>|<)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
# What a field may be compared with: its name and, for each type that it ever held, the number under which it is stored.
Fields = Mapping[str, Mapping[FieldType, int]]


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it was written; `quoted` ones are texts."""

    text: str
    quoted: bool

    def as_type(self, kind: FieldType) -> Scalar | None:
        """Return the value as `kind`, None when it is not one."""
        if kind is FieldType.STRING:
            return self.text
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
    """One `where`: the field's name as it is stored, one of = > >= < <=, and the values."""

    text: str
    field: str
    operator: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions that hold together. Equal filters are equal, and have equal digests."""

    conditions: tuple[Condition, ...]

    @property
    def digest(self) -> str:
        """A short name of it, for cursors."""
        parts = sorted((c.field, c.operator, sorted((v.text, v.quoted) for v in c.values)) for c in self.conditions)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def parse_where(texts: Sequence[str]) -> Where | None:
    """Read filters as they are written, None when there are none. Raises FilterError."""
    if len(texts) > MAX_CONDITIONS:
        raise FilterError(texts[MAX_CONDITIONS], f"is one too many: {MAX_CONDITIONS} filters at most")
    return Where(tuple(_parse(text) for text in texts)) if texts else None


def chosen(condition: Condition, fields: Fields) -> dict[FieldType, int]:
    """Return under which of its types the field is compared, each with its number. Raises FilterError as `to_sql`."""
    held = fields.get(condition.field)
    if held is None:
        near = difflib.get_close_matches(condition.field, fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FilterError(condition.text, f"names the field {condition.field}, which no image has had{hint}")
    usable = {
        kind: number for kind, number in held.items() if any(v.as_type(kind) is not None for v in condition.values)
    }
    if condition.operator != "=":
        usable.pop(FieldType.BOOLEAN, None)
        if FieldType.NUMBER in usable:  # "2020" is a text too, but was not meant as one
            usable = {FieldType.NUMBER: usable[FieldType.NUMBER]}
    for value in condition.values:
        if not any(value.as_type(kind) is not None for kind in usable):
            kinds = " or ".join(sorted(f"{kind.value}s" for kind in held))
            what = "a range" if condition.operator != "=" else f"{value.text[:40]!r}"
            raise FilterError(condition.text, f"compares {condition.field}, which holds {kinds}, with {what}")
    return usable


def _parse(text: str) -> Condition:
    segments: list[str] = []
    place = 0
    while True:
        found = _NAME.match(text, place)
        if found is None:
            raise FilterError(text, "does not begin with a field")
        segments.append(_unquote(text, found.group()) if found.group().startswith('"') else found.group())
        place = found.end()
        if text[place : place + 1] != ".":
            break
        place += 1
    operator = _OPERATOR.match(text, place)
    if operator is None:
        raise FilterError(text, "has no operator after its field")
    values: list[Value] = []
    place = operator.end()
    while place < len(text) or not values or text[place - 1] == ",":
        found = _VALUE.match(text, place)
        if found is None:
            raise FilterError(text, "has a value that is empty, or a quote that is not closed")
        quoted, bare = found.groups()
        values.append(Value(_unquote(text, quoted), True) if quoted is not None else Value(bare.strip(), False))
        place = found.end()
    sign = operator.group(1).replace(":", "=")
    if len(values) > MAX_VALUES or (sign != "=" and len(values) > 1):
        raise FilterError(text, f"has {len(values)} values; {MAX_VALUES if sign == '=' else 1} at most")
    return Condition(text, field_name(segments), sign, tuple(values))


def _unquote(text: str, quoted: str) -> str:
    try:
        value: str = json.loads(quoted)
        value.encode()
    except ValueError:
        raise FilterError(text, f"has {quoted[:40]}, which is no JSON string") from None
    return value
