"""Pages of a listing, and single records, as SQL.

Out of scope: cursors (see index/cursor.py), and stable pages of the order `updated` while images change: an image that
changes moves to the end, so that it may be listed twice.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.catalog import attributes
from index.cursor import Listing, is_id
from index.errors import InvalidKeyError
from index.filters import Where
from index.records import ImageRecord, check_key

RECORD: Final = """i.key, i.sha256, i.size, i.width, i.height, i.metadata, i.added, i.updated,
    EXISTS (SELECT 1 FROM pictures p WHERE p.image_id = i.id)"""
UNCHANGED: Final = """SELECT DISTINCT i.id FROM json_each(?) j
    JOIN images i ON i.key = json_extract(j.value, '$[0]') AND i.sha256 = json_extract(j.value, '$[1]')
    JOIN images k ON k.key = json_extract(j.value, '$[2]') AND k.sha256 = json_extract(j.value, '$[3]')"""
"""The ids of the images to delete; the parameter is JSON (see `Catalog.delete_if_unchanged`)."""


def read_page(
    connection: sqlite3.Connection, listing: Listing, after: Any, limit: int
) -> tuple[list[ImageRecord], Any | None]:
    """Return up to `limit` images after the position `after` (None: from the start), and the position of the last one.

    The position is None on the last page. Raises FilterError.
    """
    condition, values = _condition(connection, listing)
    if listing.order == "random":
        query = f"SELECT group_concat(i.id) FROM images i WHERE {condition}"  # noqa: S608
        [ids] = connection.execute(query, values).fetchone()  # one by one, the ids would take much longer
        return _read_random_page(connection, np.fromstring(ids or "", np.int64, sep=","), listing.seed, after, limit)
    column, unique = {"added": ("i.id", True), "key": ("i.key", True), "updated": ("i.updated", False)}[
        listing.sort_key
    ]  # a replaced image keeps its id
    if after is not None:
        sign = "<" if listing.descending else ">"
        condition += f" AND {column} {sign} ?" if unique else f" AND ({column}, i.id) {sign} (?, ?)"
        values += [after] if unique else after
    direction = "DESC" if listing.descending else "ASC"
    order = f"{column} {direction}" if unique else f"{column} {direction}, i.id {direction}"
    # The page is chosen first: reading the other columns of all images to sort them would take longer.
    rows = connection.execute(
        f"""SELECT page.position, i.id, {RECORD} FROM
            (SELECT i.id, {column} AS position FROM images i WHERE {condition} ORDER BY {order} LIMIT ?) page
            JOIN images i ON i.id = page.id ORDER BY page.position {direction}, i.id {direction}""",  # noqa: S608
        (*values, limit + 1),
    ).fetchall()
    position = None
    if len(rows) > limit:
        value, image = rows[limit - 1][:2]
        position = value if unique else [value, image]
    return [ImageRecord.from_row(row[2:]) for row in rows[:limit]], position


def is_position(listing: Listing, value: object) -> bool:
    """Return whether this can be the position of an image in a listing."""
    match listing.sort_key:
        case "added":
            return is_id(value)
        case "key":
            return _is_key(value)
        case _:
            return isinstance(value, list) and len(value) == 2 and all(is_id(part) for part in value)


def describe(connection: sqlite3.Connection, vector_ids: str) -> list[tuple[Any, ...]]:
    """Return (vector id, key, sha256, size, width, height, added) of the vectors that exist among the ids, a JSON list.

    The best image for people comes first: the one with the most pixels, then the largest file, then the oldest.
    """
    return connection.execute(
        """SELECT v.id, i.key, i.sha256, i.size, i.width, i.height, i.added
           FROM json_each(?) j JOIN vectors v ON v.id = j.value JOIN images i ON i.id = v.image_id
           ORDER BY i.width * i.height DESC, i.size DESC, i.added, i.key""",
        (vector_ids,),
    ).fetchall()


def matching_images(connection: sqlite3.Connection, where: Where | None) -> tuple[str, list[Any]]:
    """Return the SQL query of the ids of the images that match, and its parameters. Raises FilterError."""
    condition, values = attributes.to_sql(connection, where, "i.id")
    return f"SELECT i.id FROM images i WHERE {condition}", list(values)  # noqa: S608


def matching_vectors(connection: sqlite3.Connection, space: int, listing: Listing) -> NDArray[np.int64]:
    """Return the ids, ascending, of the vectors in a space whose images a listing returns. Raises FilterError."""
    condition, values = _condition(connection, listing)
    # A single string: fetching 100,000 rows one by one takes much longer.
    query = f"""SELECT group_concat(v.id) FROM images i JOIN vectors v ON v.image_id = i.id AND v.space_id = ?
        WHERE {condition}"""  # noqa: S608
    [text] = connection.execute(query, (space, *values)).fetchone()
    return np.sort(np.fromstring(text or "", np.int64, sep=","))


def read_vectors(connection: sqlite3.Connection, vector_ids: list[int]) -> list[ImageRecord]:
    """Return the images of those vectors that exist, in this order."""
    rows = connection.execute(
        f"""SELECT {RECORD} FROM json_each(?) j CROSS JOIN vectors v ON v.id = j.value
            JOIN images i ON i.id = v.image_id ORDER BY j.key""",  # noqa: S608
        (json.dumps(vector_ids),),
    )
    return [ImageRecord.from_row(row) for row in rows]


def _condition(connection: sqlite3.Connection, listing: Listing) -> tuple[str, list[Any]]:
    """Return the SQL expression, and its parameters, that is true for the images of a listing. Raises FilterError."""
    condition, found = attributes.to_sql(connection, listing.where, "i.id")
    values: list[Any] = list(found)
    if listing.prefix:
        condition += " AND i.key >= ?"
        values.append(listing.prefix)
        if listing.prefix_end is not None:
            condition += " AND i.key < ?"
            values.append(listing.prefix_end)
    return condition, values


def _read_random_page(
    connection: sqlite3.Connection, ids: NDArray[np.int64], seed: int, after: Any, limit: int
) -> tuple[list[ImageRecord], Any | None]:
    """Return a page as `read_page` does, in the order of the hashes of the images' ids."""
    positions = _hashed(ids, seed)
    if after is not None:
        later = positions > after[0]
        ids, positions = ids[later], positions[later]
    nearest = np.argpartition(positions, limit)[: limit + 1] if len(ids) > limit + 1 else np.arange(len(ids))
    chosen = nearest[np.argsort(positions[nearest])]
    page = ids[chosen[:limit]].tolist()
    rows = connection.execute(
        f"SELECT {RECORD} FROM json_each(?) j CROSS JOIN images i ON i.id = j.value ORDER BY j.key",  # noqa: S608
        (json.dumps(page),),
    )
    images = [ImageRecord.from_row(row) for row in rows]
    last = None if len(ids) <= limit else [int(positions[chosen[limit - 1]]), page[-1]]
    return images, last


def _hashed(ids: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return a different whole number of 63 bits for each id, in an order that looks random.

    Reference: the mixing function of SplitMix64 (Steele, Lea and Flood, 2014), which is a bijection of 64 bits.
    """
    with np.errstate(over="ignore"):
        mixed = ids.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(1)).astype(np.int64)


def _is_key(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(check_key(value))
    except InvalidKeyError:
        return False
