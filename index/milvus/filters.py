"""Filters on metadata in Milvus: the fields of a row that filters use, and the expression of a `where`.

A row has a token for every (field, type, value) of its metadata: the hash of the three. A condition with "=" matches if
the row has one of the tokens of its values. For ranges, a row has each field's value, or the smallest and largest of
several, under the hash of field and type. A text is stored as the hexadecimal of its UTF-8, which sorts by code point.
Guarantees: the meaning is that of `index.filters`. Text of users is part of an expression only as a hash or in
hexadecimal.
Out of scope: distinguishing whole numbers above 2**53 in ranges, which compare as float64. Equality is exact.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from index.fields import FieldType, Scalar, attributes
from index.filters import EXISTS, Fields, Where, compared_types

TOKEN_LENGTH = 16
MAX_TOKENS = 4096  # more values than 16 KB of metadata can have
_NAME_LENGTH = 8


def tokens(metadata: Mapping[str, Any]) -> list[str]:
    """Return the sorted tokens of all values that a filter can match with "="."""
    return sorted({_token(name, kind, value) for name, kind, value in attributes(metadata)})


def bounds(metadata: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the values that ranges compare: "v" + field id for a single value, "l" and "h" + field id for several."""
    values: dict[str, list[str | float]] = {}
    for name, kind, value in attributes(metadata):
        if kind is not FieldType.BOOLEAN:
            values.setdefault(field_id(name, kind), []).append(_comparable(kind, value))
    found: dict[str, str | float] = {}
    for field, several in values.items():
        low, high = min(several), max(several)
        found |= {f"v{field}": low} if low == high else {f"l{field}": low, f"h{field}": high}
    return found


def fields_of(metadata: Mapping[str, Any]) -> set[tuple[str, FieldType]]:
    """Return the fields of some metadata, with their types."""
    return {(name, kind) for name, kind, _ in attributes(metadata)}


def field_id(name: str, kind: FieldType) -> str:
    """Return a short name for a field and a type, of letters, digits, "-" and "_"."""
    return _hash(f"{kind}:{name}", _NAME_LENGTH)


def expression(where: Where, fields: Fields) -> str:
    """Return the expression that matches the rows.

    Raises FilterError as `index.filters.compared_types` does.
    """
    parts = []
    for condition in where.conditions:
        kinds = compared_types(condition, fields)
        if condition.operator == EXISTS:
            parts.append(_exists(condition.field, list(kinds)))
        elif condition.operator == "=":
            accepted = {
                _token(condition.field, kind, scalar)
                for kind in kinds
                for value in condition.values
                if (scalar := value.as_type(kind)) is not None
            }
            parts.append(f"array_contains_any(tokens, {json.dumps(sorted(accepted))})")
        else:
            ranges = []
            for kind in kinds:
                scalar = condition.values[0].as_type(kind)
                if scalar is None:
                    continue
                end = "l" if condition.operator.startswith("<") else "h"
                field, limit = field_id(condition.field, kind), json.dumps(_comparable(kind, scalar))
                ranges += [f'bounds["{prefix}{field}"] {condition.operator} {limit}' for prefix in ("v", end)]
            parts.append(f"({' or '.join(ranges)})")
    return " and ".join(parts)


def _exists(field: str, kinds: Sequence[FieldType]) -> str:
    """Return the expression that matches the rows with any value of these types in a field."""
    parts = ['id == ""']  # matches no row: the field may never have had a value
    for kind in kinds:
        if kind is FieldType.BOOLEAN:
            either = json.dumps([_token(field, kind, value) for value in (False, True)])
            parts.append(f"array_contains_any(tokens, {either})")
        else:
            least = json.dumps(_comparable(kind, "" if kind is FieldType.STRING else float("-inf")))
            parts += [f'bounds["{prefix}{field_id(field, kind)}"] >= {least}' for prefix in ("v", "h")]
    return f"({' or '.join(parts)})"


def _token(name: str, kind: FieldType, value: Scalar) -> str:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # 2020.0 equals 2020
    return _hash(f"{kind}:{name}\0{int(value) if isinstance(value, bool) else value}", TOKEN_LENGTH)


def _comparable(kind: FieldType, value: Scalar) -> str | float:
    if kind is FieldType.STRING:
        return str(value).encode().hex()
    return min(max(float(value), -sys.float_info.max), sys.float_info.max)  # JSON has no infinity


def _hash(text: str, length: int) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:length]
