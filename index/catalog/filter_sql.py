"""Translate a metadata filter to SQL."""

from __future__ import annotations

from index.fields import Scalar
from index.filters import Fields, Where, compared_types


def to_sql(where: Where, fields: Fields, column: str) -> tuple[str, list[Scalar | int]]:
    """Return an SQL expression, and its parameters, that is true if the image whose id is in `column` matches.

    Raises FilterError as `compared_types` does.
    """
    parts: list[str] = []
    values: list[Scalar | int] = []
    for condition in where.conditions:
        selects = []
        for kind, field_id in compared_types(condition, fields).items():
            typed = [scalar for value in condition.values if (scalar := value.as_type(kind)) is not None]
            if condition.operator == "=":
                selects.append(f"field_id = ? AND value IN ({','.join('?' * len(typed))})")
            else:
                selects.append(f"field_id = ? AND value {condition.operator} ?")
            values += [field_id, *typed]
        union = " UNION ALL ".join(f"SELECT image_id FROM attributes WHERE {select}" for select in selects)  # noqa: S608
        parts.append(f"{column} IN ({union})")
    return " AND ".join(parts), values
