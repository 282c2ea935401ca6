"""Write, update and delete images in the catalog, inside a transaction, and record the changes to their vectors.

Out of scope: committing (see writer.py), and validating keys, metadata and vectors (see index/records.py).
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
from index.records import AddOutcome, checksum, encode_metadata, now


@dataclass(frozen=True, slots=True)
class Entry:
    """A validated image, ready to be stored.

    metadata: as JSON; None keeps the metadata that the key already has. vectors: float16 [4096] each, by the
    fingerprint of the model that made it.
    """

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: str | None
    picture: bytes | None
    preparation: int
    vectors: Mapping[str, NDArray[np.float16]]


@dataclass(slots=True)
class Change:
    """The vectors that one write added and removed; the searchers in memory apply it after the commit.

    ids, rows, spaces: id (ascending), values and vector space of each added vector. removed: ids of removed vectors of
    all spaces; a vector can be added and removed by the same write. outcomes: one for each image added.
    """

    outcomes: list[AddOutcome] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float16]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


def add_image(
    connection: sqlite3.Connection, vectors: Mapping[int, NDArray[np.float16]], entry: Entry, change: Change
) -> AddOutcome:
    """Add or replace one image. Records the added and removed vectors in `change`.

    vectors: the vectors to store, by vector space.
    """
    time_us = now()
    found = connection.execute(
        """SELECT id, sha256, preparation, metadata, EXISTS (SELECT 1 FROM pictures WHERE image_id = images.id), added
           FROM images WHERE key = ?""",
        (entry.key,),
    ).fetchone()
    old_id, *old_content, old_metadata, has_picture, added = found or (None, None, None, None, False, time_us)
    same_content = old_content == [entry.sha256, entry.preparation]
    metadata = entry.metadata if entry.metadata is not None else old_metadata or "{}"
    existing: set[int] = set()
    if same_content:
        existing = {r[0] for r in connection.execute("SELECT space_id FROM vectors WHERE image_id = ?", (old_id,))}
        complete = vectors.keys() <= existing and (has_picture or entry.picture is None)
        if complete and metadata == old_metadata:
            return AddOutcome.UNCHANGED
    record = (entry.key, entry.sha256, entry.size, entry.width, entry.height, metadata, added, time_us)
    image = _write(connection, record, entry.preparation)
    if metadata != old_metadata:
        attributes.store(connection, image, metadata)
    if old_id is not None and not same_content:  # the vectors of all models were made from the old picture
        change.removed += _vector_ids(connection, image)
        connection.execute("DELETE FROM vectors WHERE image_id = ?", (image,))
        connection.execute("DELETE FROM pictures WHERE image_id = ?", (image,))
    if entry.picture is not None:
        connection.execute(
            "INSERT OR IGNORE INTO pictures (image_id, jpeg, crc) VALUES (?, ?, ?)",
            (image, entry.picture, record_checksum(entry.picture)),
        )
    for space, vector in vectors.items():
        if space not in existing:
            add_vector(connection, space, image, vector, change)
    return AddOutcome.ADDED if old_id is None else AddOutcome.REPLACED


def add_vector(
    connection: sqlite3.Connection, space: int, image: int, vector: NDArray[np.float16], change: Change
) -> None:
    """Store the vector of an image in `space`, where it must not have one yet."""
    vector_id = connection.execute(
        "INSERT INTO vectors (image_id, space_id, crc, vector) VALUES (?, ?, ?, ?)",
        (image, space, checksum(vector), vector.tobytes()),
    ).lastrowid
    change.spaces.append(space)
    change.ids.append(int(vector_id or 0))
    change.rows.append(vector)


def change_metadata(
    connection: sqlite3.Connection, key: str, update: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> None:
    """Replace the metadata of an image by `update(metadata)`. Raises KeyNotFoundError, MetadataError."""
    row = connection.execute(
        "SELECT id, preparation, key, sha256, size, width, height, metadata, added FROM images WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        raise KeyNotFoundError(key)
    image, preparation, *record, old, added = row
    metadata = encode_metadata(update(json.loads(old)))
    if metadata != old:
        _write(connection, (*record, metadata, added, now()), preparation)
        attributes.store(connection, image, metadata)


def delete_images(connection: sqlite3.Connection, images: Sequence[int], change: Change) -> None:
    """Delete images by id, with their pictures, attributes and vectors."""
    for image in images:
        change.removed += _vector_ids(connection, image)
        connection.execute("DELETE FROM images WHERE id = ?", (image,))


def delete_found(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> tuple[Change, int]:
    """Delete the images whose ids a query returns; return the change, and how many images these were."""
    images = [row[0] for row in connection.execute(query, values)]
    change = Change()
    delete_images(connection, images, change)
    return change, len(images)


def _write(connection: sqlite3.Connection, record: tuple[str | int, ...], preparation: int) -> int:
    """Insert a record (key, sha256, size, width, height, metadata, added, updated), or replace that of its key."""
    [image] = connection.execute(
        """INSERT INTO images (key, sha256, size, width, height, metadata, added, updated, crc, preparation)
           VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (key) DO UPDATE
           SET sha256 = excluded.sha256, size = excluded.size, width = excluded.width, height = excluded.height,
               metadata = excluded.metadata, added = excluded.added, updated = excluded.updated, crc = excluded.crc,
               preparation = excluded.preparation
           RETURNING id""",
        (*record, record_checksum(*record), preparation),
    ).fetchone()
    return int(image)


def _vector_ids(connection: sqlite3.Connection, image: int) -> list[int]:
    """Return the ids of an image's vectors in all spaces."""
    rows = connection.execute("SELECT id FROM vectors WHERE image_id = ?", (image,))
    return [row[0] for row in rows]
