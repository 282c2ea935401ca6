"""The `attributes` table: the metadata fields of each image, stored for filtering."""

from __future__ import annotations

import json
import sqlite3

from index.fields import Attribute, FieldType, attributes


def store(connection: sqlite3.Connection, image: int, metadata: str) -> None:
    """Make the table hold the values of `metadata` (JSON) for the image with this id, inside a transaction."""
    wanted = attributes(json.loads(metadata))
    have = stored(connection, image)
    for name, kind, value in have - wanted:
        connection.execute(
            """DELETE FROM attributes WHERE image_id = ? AND value = ?
               AND field_id = (SELECT id FROM fields WHERE name = ? AND type = ?)""",
            (image, value, name, kind),
        )
    for name, kind, value in wanted - have:
        connection.execute("INSERT OR IGNORE INTO fields (name, type) VALUES (?, ?)", (name, kind))
        connection.execute(
            "INSERT INTO attributes SELECT id, ?, ? FROM fields WHERE name = ? AND type = ?",
            (value, image, name, kind),
        )


def stored(connection: sqlite3.Connection, image: int) -> set[Attribute]:
    """Return what the table holds for an image."""
    rows = connection.execute(
        "SELECT f.name, f.type, a.value FROM attributes a JOIN fields f ON f.id = a.field_id WHERE a.image_id = ?",
        (image,),
    )
    return {(name, FieldType(kind), value) for name, kind, value in rows}


def known(connection: sqlite3.Connection) -> dict[str, dict[FieldType, int]]:
    """Return every field that an image ever had, with the types that it held and their numbers."""
    fields: dict[str, dict[FieldType, int]] = {}
    for number, name, kind in connection.execute("SELECT id, name, type FROM fields"):
        fields.setdefault(name, {})[FieldType(kind)] = number
    return fields
