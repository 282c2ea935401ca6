"""Storing an image inside a transaction, and what that did to its vectors.

Does not: commit (writer.py does), or check what it stores (records.py did).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.records import AddOutcome, checksum


@dataclass(frozen=True, slots=True)
class Entry:
    """An image ready to be stored: checked, its metadata encoded (None keeps what is there), its vector rounded."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: str | None
    picture: bytes | None
    vector: NDArray[np.float16]


@dataclass(slots=True)
class Change:
    """What a write did to the vectors: `ids` and `rows` came (ids ascending), `removed` went, perhaps the same ones."""

    outcomes: list[AddOutcome] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float16]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


def add_image(connection: sqlite3.Connection, space: int, entry: Entry, now: int, change: Change) -> AddOutcome:
    """Store one image, noting in `change` which vectors came and went; `now` in microseconds since 1970, UTC."""
    row = connection.execute(
        """SELECT id, sha256, metadata, EXISTS (SELECT 1 FROM vectors WHERE image_id = images.id AND space_id = ?),
                  EXISTS (SELECT 1 FROM pictures WHERE image_id = images.id)
           FROM images WHERE key = ?""",
        (space, entry.key),
    ).fetchone()
    if row is None:
        image, same, metadata = None, False, entry.metadata or "{}"
    else:
        image, same = row[0], row[1] == entry.sha256
        metadata = row[2] if entry.metadata is None else entry.metadata
        if same and metadata == row[2] and row[3] and (row[4] or entry.picture is None):
            return AddOutcome.UNCHANGED
    values = (entry.sha256, entry.size, entry.width, entry.height, metadata, now)
    if image is None:
        image = connection.execute(
            "INSERT INTO images (sha256, size, width, height, metadata, added, updated, key) VALUES (?,?,?,?,?,?,?,?)",
            (*values, now, entry.key),
        ).lastrowid
    else:
        connection.execute(
            "UPDATE images SET sha256 = ?, size = ?, width = ?, height = ?, metadata = ?, updated = ? WHERE id = ?",
            (*values, image),
        )
        if not same:  # other models' vectors are of the old picture too
            change.removed += vector_ids_of(connection, image, space)
            connection.execute("DELETE FROM vectors WHERE image_id = ?", (image,))
            connection.execute("DELETE FROM pictures WHERE image_id = ?", (image,))
    if entry.picture is not None:
        connection.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?)", (image, entry.picture))
    if row is None or not same or not row[3]:
        vector = connection.execute(
            "INSERT INTO vectors (image_id, space_id, crc, vector) VALUES (?, ?, ?, ?)",
            (image, space, checksum(entry.vector), entry.vector.tobytes()),
        ).lastrowid
        change.ids.append(int(vector or 0))
        change.rows.append(entry.vector)
    return AddOutcome.ADDED if row is None else AddOutcome.REPLACED


def vector_ids_of(connection: sqlite3.Connection, image: int, space: int) -> list[int]:
    """Return the ids of an image's vectors in `space`: none, or one."""
    rows = connection.execute("SELECT id FROM vectors WHERE image_id = ? AND space_id = ?", (image, space))
    return [row[0] for row in rows]
