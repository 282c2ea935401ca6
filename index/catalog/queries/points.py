"""Read the images of one vector space without their vectors.

Guarantees: all batches of `points` show the catalog at one moment; a running server can write meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from index.catalog import attributes
from index.catalog.database import connect, translated
from index.filters import Where
from index.labels import value_at
from index.points import Points

_BATCH: Final = 10_000  # images


def points(catalog: Path, space: int, path: Sequence[str], where: Where | None) -> Iterator[Points]:
    """Yield the images with a vector in `space` that match, in the order in which they were added.

    path: of the metadata field whose values to return. Raises FilterError.
    """
    with translated(catalog), closing(connect(catalog, read_only=True)) as connection:
        connection.execute("BEGIN")
        condition, values = attributes.to_sql(connection, where, "i.id")
        rows = connection.execute(
            f"""SELECT i.key, i.sha256, i.metadata FROM images i WHERE {condition}
                AND EXISTS (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = ?) ORDER BY i.id""",  # noqa: S608
            (*values, space),
        )
        for batch in iter(lambda: rows.fetchmany(_BATCH), []):
            keys, hashes, metadata = zip(*batch, strict=True)
            yield Points([*keys], [*hashes], [value_at(json.loads(text), path) for text in metadata])


def vector_ids(connection: sqlite3.Connection, space: int, keys: Sequence[str]) -> dict[int, str]:
    """Return {vector id: key} of those `keys` that have a vector in `space`."""
    rows = connection.execute(
        """SELECT v.id, i.key FROM json_each(?) j CROSS JOIN images i ON i.key = j.value
           JOIN vectors v ON v.image_id = i.id AND v.space_id = ?""",
        (json.dumps(list(keys)), space),
    )
    return dict(rows)
