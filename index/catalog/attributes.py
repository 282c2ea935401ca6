"""The `attributes` table: the metadata fields of each image, stored so that filters can use them.

Out of scope: removing a field from `fields` when its last value is deleted. Filters may still name it.
"""

from __future__ import annotations

import json
import sqlite3

from index.fields import Attribute, FieldType, Scalar, attributes
from index.filters import EXISTS, Where, compared_types


def store(connection: sqlite3.Connection, image: int, metadata: str) -> None:
    """Replace the stored attributes of an image (by id) by those of `metadata` (JSON), inside a transaction."""
    new = attributes(json.loads(metadata))
    old = load(connection, image)
    for name, kind, value in old - new:
        connection.execute(
            """DELETE FROM attributes WHERE image_id = ? AND value = ?
               AND field_id = (SELECT id FROM fields WHERE name = ? AND type = ?)""",
            (image, value, name, kind),
        )
    for name, kind, value in new - old:
        connection.execute("INSERT OR IGNORE INTO fields (name, type) VALUES (?, ?)", (name, kind))
        connection.execute(
            "INSERT INTO attributes SELECT id, ?, ? FROM fields WHERE name = ? AND type = ?", (value, image, name, kind)
        )


def load(connection: sqlite3.Connection, image: int) -> set[Attribute]:
    """Return the stored attributes of an image."""
    rows = connection.execute(
        "SELECT f.name, f.type, a.value FROM attributes a JOIN fields f ON f.id = a.field_id WHERE a.image_id = ?",
        (image,),
    )
    return {(name, FieldType(kind), value) for name, kind, value in rows}


def to_sql(
    connection: sqlite3.Connection, where: Where | None, column: str, *, each: bool = False
) -> tuple[str, list[Scalar | int]]:
    """Return an SQL expression, and its parameters, that is true if the image whose id is in `column` matches.

    each: look up the attributes of each image, which is faster if few images are tested; otherwise all matching images
    are collected first. Raises FilterError as `compared_types` does.
    """
    if where is None:
        return "1", []
    fields: dict[str, dict[FieldType, int]] = {}
    for number, name, kind in connection.execute("SELECT id, name, type FROM fields"):
        fields.setdefault(name, {})[FieldType(kind)] = number
    parts: list[str] = []
    values: list[Scalar | int] = []
    for condition in where.conditions:
        selects = []
        for kind, field_id in compared_types(condition, fields).items():
            typed = [scalar for value in condition.values if (scalar := value.as_type(kind)) is not None]
            if condition.operator == EXISTS:
                selects.append("field_id = ?")
            elif condition.operator == "=":
                selects.append(f"field_id = ? AND value IN ({','.join('?' * len(typed))})")
            else:
                selects.append(f"field_id = ? AND value {condition.operator} ?")
            values += [field_id, *typed]
        if not selects:  # no image ever had the field
            parts.append("0")
            continue
        if each:
            anyone = " OR ".join(f"({select})" for select in selects)
            parts.append(f"EXISTS (SELECT 1 FROM attributes WHERE image_id = {column} AND ({anyone}))")  # noqa: S608
            continue
        union = " UNION ALL ".join(f"SELECT image_id FROM attributes WHERE {select}" for select in selects)  # noqa: S608
        parts.append(f"{column} IN ({union})")
    return " AND ".join(parts), values
