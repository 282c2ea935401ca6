"""Pages of a listing on Milvus, and the facets of its images.

Milvus returns rows by id, so that only a listing by key reads one page. Every other order reads the id and one number
of all matching images for each page.

Guarantees: the same images as on one machine. The order `random` is another one.
Out of scope: more than 100,000 matching images in another order than by key, and facets of more; they are refused.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from index.cursor import Listing, is_id
from index.errors import IndexLimitError, IndexUnavailableError
from index.facets import FacetCounter, Facets
from index.milvus import schema
from index.milvus.client import Milvus
from index.milvus.schema import MAX_ROWS, RECORD, Row

_MAX_SORTED: Final = 100_000
_METADATA_ROWS: Final = 1000  # up to 16 KB each


def read_page(
    milvus: Milvus, collection: str, listing: Listing, *, where: str, after: Any, limit: int
) -> tuple[list[Row], Any | None]:
    """Return up to `limit` rows after the position `after` (None: from the start), and the position of the last one.

    The position is None on the last page. where: the expression of the listing's filter. Raises IndexLimitError.
    """
    parts = [where, f'id like "{schema.id_of(listing.prefix)}%"' if listing.prefix else ""]
    condition = " and ".join(part for part in parts if part)
    if listing.order == "key":
        rows = milvus.page(collection, RECORD, after=after or "", limit=limit + 1, where=condition)
        return rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None
    choose = heapq.nlargest if listing.descending else heapq.nsmallest
    found = choose(limit + 1, _positions(milvus, collection, listing, condition, after))
    by_id = milvus.rows(collection, [row_id for _, row_id in found[:limit]], RECORD)
    rows = [by_id[row_id] for _, row_id in found[:limit] if row_id in by_id]  # some may have been deleted meanwhile
    return rows, list(found[limit - 1]) if len(found) > limit else None


def is_position(listing: Listing, value: object) -> bool:
    """Return whether this can be the position of an image in a listing."""
    if listing.order == "key":
        return schema.is_id(value)
    return isinstance(value, list) and len(value) == 2 and is_id(value[0]) and schema.is_id(value[1])


def count_fields(
    milvus: Milvus, collection: str, *, where: str, limit: int, field: str | None, stopped: Callable[[], bool]
) -> Facets:
    """Return the metadata fields of the images that match, with up to `limit` values each. field: only this one.

    Raises IndexUnavailableError once `stopped` returns True, and IndexLimitError.
    """
    counter, images = FacetCounter(field), 0
    for rows in milvus.pages(collection, ["id", "metadata"], size=_METADATA_ROWS, where=where):
        if stopped():
            raise IndexUnavailableError(milvus.uri, "counting the fields was stopped")
        images = _check_count(images + len(rows), "counted")
        for row in rows:
            counter.add(json.loads(row["metadata"]))
    return counter.result(limit)


def _positions(
    milvus: Milvus, collection: str, listing: Listing, condition: str, after: Any
) -> Iterator[tuple[int, str]]:
    """Yield the positions of all matching images that follow `after`."""
    images = 0
    fields = [listing.sort_key] if listing.sort_key in ("added", "updated") else []
    bound = None if after is None else (after[0], after[1])
    for rows in milvus.pages(collection, ["id", *fields], size=MAX_ROWS, where=condition):
        images = _check_count(images + len(rows), "sorted")
        for row in rows:
            position = _value(row, listing), row["id"]
            if bound is None or (position < bound if listing.descending else position > bound):
                yield position


def _value(row: Row, listing: Listing) -> int:
    match listing.sort_key:
        case "random":
            text = f"{listing.seed} {row['id']}".encode()
            return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
        case "key":
            return 0
        case column:
            return int(row[column])


def _check_count(images: int, done: str) -> int:
    if images > _MAX_SORTED:
        what = f"More than {_MAX_SORTED:,} images would have to be {done}: use a filter"
        raise IndexLimitError(what + (", a prefix or order=key" if done == "sorted" else ""), _MAX_SORTED)
    return images
