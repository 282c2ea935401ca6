"""Storing, changing and deleting images inside a transaction, and what that did to their vectors.

Does not: commit (writer.py does), or check what it stores (records.py did).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.catalog import attributes
from index.catalog.database import record_checksum
from index.errors import KeyNotFoundError
from index.records import AddOutcome, checksum, encode_metadata


@dataclass(frozen=True, slots=True)
class Entry:
    """An image ready to be stored: checked, its metadata encoded (None keeps what is there), its vectors rounded.

    vectors: by the fingerprint of the model that made each.
    """

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: str | None
    picture: bytes | None
    vectors: Mapping[str, NDArray[np.float16]]


@dataclass(slots=True)
class Change:
    """What a write did to the vectors: `ids` and `rows` came (ids ascending), `removed` went, perhaps the same ones.

    spaces: to which each that came belongs. removed: of all spaces.
    """

    outcomes: list[AddOutcome] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float16]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


def add_image(
    connection: sqlite3.Connection, vectors: Mapping[int, NDArray[np.float16]], entry: Entry, now: int, change: Change
) -> AddOutcome:
    """Store one image, noting in `change` which vectors came and went; `now` in microseconds since 1970, UTC.

    vectors: those of the entry that are stored, by space.
    """
    row = connection.execute(
        """SELECT id, sha256, metadata, EXISTS (SELECT 1 FROM pictures WHERE image_id = images.id), added
           FROM images WHERE key = ?""",
        (entry.key,),
    ).fetchone()
    have: set[int] = set()
    if row is None:
        same, metadata, added = False, entry.metadata or "{}", now
    else:
        same, added = row[1] == entry.sha256, row[4]
        metadata = row[2] if entry.metadata is None else entry.metadata
        if same:
            have = {r[0] for r in connection.execute("SELECT space_id FROM vectors WHERE image_id = ?", (row[0],))}
        if same and metadata == row[2] and vectors.keys() <= have and (row[3] or entry.picture is None):
            return AddOutcome.UNCHANGED
    record = (entry.key, entry.sha256, entry.size, entry.width, entry.height, metadata, added, now)
    image = _write(connection, None if row is None else row[0], record)
    if row is None or metadata != row[2]:
        attributes.store(connection, image, metadata)
    if row is not None and not same:  # other models' vectors are of the old picture too
        change.removed += vector_ids_of(connection, image)
        connection.execute("DELETE FROM vectors WHERE image_id = ?", (image,))
        connection.execute("DELETE FROM pictures WHERE image_id = ?", (image,))
    if entry.picture is not None:
        connection.execute(
            "INSERT OR IGNORE INTO pictures (image_id, jpeg, crc) VALUES (?, ?, ?)",
            (image, entry.picture, record_checksum(entry.picture)),
        )
    for space, vector in vectors.items():
        if space not in have:
            add_vector(connection, space, image, vector, change)
    return AddOutcome.ADDED if row is None else AddOutcome.REPLACED


def add_vector(
    connection: sqlite3.Connection, space: int, image: int, vector: NDArray[np.float16], change: Change
) -> None:
    """Give an image, which has none there, its vector in `space`."""
    number = connection.execute(
        "INSERT INTO vectors (image_id, space_id, crc, vector) VALUES (?, ?, ?, ?)",
        (image, space, checksum(vector), vector.tobytes()),
    ).lastrowid
    change.spaces.append(space)
    change.ids.append(int(number or 0))
    change.rows.append(vector)


def change_metadata(
    connection: sqlite3.Connection, key: str, update: Callable[[dict[str, Any]], Mapping[str, Any]], now: int
) -> None:
    """Replace an image's metadata by `update` of it. Raises KeyNotFoundError, MetadataError."""
    row = connection.execute(
        "SELECT id, key, sha256, size, width, height, metadata, added FROM images WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        raise KeyNotFoundError(key)
    image, *record, before, added = row
    metadata = encode_metadata(update(json.loads(before)))
    if metadata != before:
        _write(connection, image, (*record, metadata, added, now))
        attributes.store(connection, image, metadata)


def delete_images(connection: sqlite3.Connection, images: Sequence[int], change: Change) -> None:
    """Delete images by their ids, with all that belongs to them."""
    for image in images:
        change.removed += vector_ids_of(connection, image)
        connection.execute("DELETE FROM images WHERE id = ?", (image,))


def _write(connection: sqlite3.Connection, image: int | None, record: tuple[str | int, ...]) -> int:
    """Insert a record (key, sha256, size, width, height, metadata, added, updated), or write it over `image`'s."""
    values = (*record, record_checksum(*record))
    if image is not None:
        connection.execute(
            """UPDATE images SET key = ?, sha256 = ?, size = ?, width = ?, height = ?, metadata = ?, added = ?,
                      updated = ?, crc = ? WHERE id = ?""",
            (*values, image),
        )
        return image
    return int(
        connection.execute(
            """INSERT INTO images (key, sha256, size, width, height, metadata, added, updated, crc)
               VALUES (?,?,?,?,?,?,?,?,?)""",
            values,
        ).lastrowid
        or 0
    )


def vector_ids_of(connection: sqlite3.Connection, image: int) -> list[int]:
    """Return the ids of an image's vectors, one at most in each space."""
    rows = connection.execute("SELECT id FROM vectors WHERE image_id = ?", (image,))
    return [row[0] for row in rows]
