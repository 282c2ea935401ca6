"""The `attributes` table: the metadata fields of each image, stored so that filters can use them.

Out of scope: removing a field from `fields` when its last value is deleted. Filters may still name it.
"""

from __future__ import annotations

import json
import sqlite3

from index.fields import Attribute, FieldType, attributes


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
            "INSERT INTO attributes SELECT id, ?, ? FROM fields WHERE name = ? AND type = ?",
            (value, image, name, kind),
        )


def load(connection: sqlite3.Connection, image: int) -> set[Attribute]:
    """Return the stored attributes of an image."""
    rows = connection.execute(
        "SELECT f.name, f.type, a.value FROM attributes a JOIN fields f ON f.id = a.field_id WHERE a.image_id = ?",
        (image,),
    )
    return {(name, FieldType(kind), value) for name, kind, value in rows}


def known_fields(connection: sqlite3.Connection) -> dict[str, dict[FieldType, int]]:
    """Return every field that an image ever had, with the types of its values and the id of each (field, type)."""
    fields: dict[str, dict[FieldType, int]] = {}
    for id_, name, kind in connection.execute("SELECT id, name, type FROM fields"):
        fields.setdefault(name, {})[FieldType(kind)] = id_
    return fields
