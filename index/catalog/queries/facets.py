"""Count the values of metadata fields in SQL.

The attributes are read twice: once to count the images with each value, and once to count those with each field.

Guarantees: the counts are of one moment; a running server can write meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.catalog.database import connect, translated
from index.catalog.listing import matching_images
from index.facets import MAX_FIELDS, MAX_LENGTH, Facet, Facets, finite, shown, values_of_each
from index.fields import FieldType
from index.filters import Where

# Up to this many images, their attributes are copied; otherwise all attributes are read, which takes less time.
_MAX_COPIED: Final = 10_000
_MAPPED_BYTES: Final = 1 << 30  # of the file; saves a system call for each page
_INSTRUCTIONS: Final = 100_000  # of SQLite between two checks of `stopped`; about a millisecond


def read_facets(
    catalog: Path,
    limit: int,
    *,
    where: Where | None = None,
    field: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Facets:
    """Return the fields of the images that match, with up to `limit` values each. field: only this one.

    stopped: called repeatedly; once it returns True, IndexUnavailableError is raised. Raises FilterError.
    """
    with translated(catalog), closing(connect(catalog, read_only=True)) as connection:
        connection.set_progress_handler(stopped, _INSTRUCTIONS)
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}").fetchone()
        connection.execute("BEGIN")
        images, table, condition = _select(connection, where)
        values = "CASE WHEN typeof(value) = 'text' AND length(value) > ? THEN NULL ELSE value END"
        only = "1" if field is None else "field_id IN (SELECT id FROM fields WHERE name = ?)"
        connection.execute(
            f"""CREATE TEMP TABLE counts AS SELECT field_id, {values} AS value, n FROM
                (SELECT field_id, value, count(*) AS n FROM {table} WHERE {condition} AND {only}
                 GROUP BY field_id, value)""",  # noqa: S608
            (MAX_LENGTH,) if field is None else (MAX_LENGTH, field),
        )
        connection.execute("CREATE INDEX temp.counts_of_field ON counts (field_id)")
        rows = connection.execute(
            """SELECT f.id, f.name, f.type, n FROM (SELECT field_id, sum(n) AS n FROM counts GROUP BY field_id) c
               JOIN fields f ON f.id = c.field_id ORDER BY n DESC, f.name, f.type LIMIT ?""",
            (MAX_FIELDS + 1,),
        ).fetchall()
        having = _count_images(connection, [row[0] for row in rows], table, condition)
        found = sorted(rows, key=lambda row: (-having[row[0]], row[1], row[2]))[:MAX_FIELDS]
        each = values_of_each(limit, len(found))
        facets = [_facet(connection, row, having, each) for row in found]
        return Facets(images, facets, len(rows) <= MAX_FIELDS)


def _select(connection: sqlite3.Connection, where: Where | None) -> tuple[int, str, str]:
    """Return how many images match, the table with their attributes, and which of its rows these are."""
    if where is None:
        [images] = connection.execute("SELECT count(*) FROM images").fetchone()
        return images, "attributes", "1"
    connection.execute("CREATE TEMP TABLE matching (id INTEGER PRIMARY KEY)")
    query, values = matching_images(connection, where)
    images = connection.execute(f"INSERT INTO matching {query}", values).rowcount
    if images > _MAX_COPIED:  # the plus sign keeps SQLite from looking up each image in another index
        return images, "attributes", "+image_id IN matching"
    # CROSS JOIN: read the attributes of each image, instead of looking up the image of each attribute.
    connection.execute(
        """CREATE TEMP TABLE matching_attributes AS SELECT a.field_id, a.value, a.image_id
           FROM matching m CROSS JOIN attributes a ON a.image_id = m.id"""
    )
    connection.execute("CREATE INDEX temp.matching_values ON matching_attributes (field_id, value, image_id)")
    return images, "matching_attributes", "1"


def _count_images(connection: sqlite3.Connection, fields: Sequence[int], table: str, condition: str) -> dict[int, int]:
    """Return how many images have each field. An image has several rows of a field that holds a list."""
    [highest] = connection.execute("SELECT max(id) FROM images").fetchone()
    matching = np.ones((highest or 0) + 1, np.bool_)
    if condition != "1":
        matching[:] = False
        matching[_ids(connection, "SELECT group_concat(id) FROM matching")] = True
    counts = {}
    for field in fields:
        found = np.zeros(len(matching), np.bool_)
        found[_ids(connection, f"SELECT group_concat(image_id) FROM {table} WHERE field_id = ?", field)] = True  # noqa: S608
        counts[field] = int((found & matching).sum())
    return counts


def _ids(connection: sqlite3.Connection, query: str, *values: int) -> NDArray[np.int64]:
    """Return ids that a query returns as one text: one by one, they would take much longer."""
    return np.fromstring(connection.execute(query, values).fetchone()[0] or "", np.int64, sep=",")


def _facet(connection: sqlite3.Connection, row: Sequence[Any], having: Mapping[int, int], limit: int) -> Facet:
    """Return a field. row: its number, name and type."""
    number, name, type_ = row[:3]
    kind = FieldType(type_)
    [distinct, low, high] = connection.execute(
        "SELECT count(*), min(value), max(value) FROM counts WHERE field_id = ?", (number,)
    ).fetchone()
    values = connection.execute(
        """SELECT value, n FROM counts WHERE field_id = ? AND (typeof(value) = 'text'
           OR value BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) ORDER BY n DESC, value LIMIT ?""",
        (number, limit),  # JSON has no infinity
    ).fetchall()
    if kind is not FieldType.NUMBER:
        low = high = None
    return Facet(name, kind, having[number], distinct, shown(kind, values), finite(low), finite(high))
