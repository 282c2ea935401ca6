"""Change the metadata of many images of the catalog.

Guarantees: `change_keys` changes all images or none. `change_matching` uses short transactions, so that other writes
can run in between, and tests each image again in its transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from index.catalog import attributes
from index.catalog.catalog import Catalog
from index.catalog.database import connect, translated
from index.catalog.images import change_metadata
from index.filters import Where
from index.records import MetadataChanges

_BATCH: Final = 100  # about 10 ms, for which another write may have to wait
Update = Callable[[dict[str, Any]], Mapping[str, Any]]


def change_keys(catalog: Catalog, keys: Sequence[str], update: Update) -> MetadataChanges:
    """Replace the metadata of these images in one transaction. Raises KeyNotFoundError, MetadataError."""

    def work(connection: sqlite3.Connection) -> MetadataChanges:
        changed = [change_metadata(connection, key, update) for key in keys]
        return MetadataChanges(len(changed), sum(changed))

    return catalog.writer.run(work)


def change_matching(catalog: Catalog, where: Where, update: Update, stopped: Callable[[], bool]) -> MetadataChanges:
    """Replace the metadata of the images that match now, until `stopped` returns True.

    Raises FilterError, MetadataError.
    """
    with translated(catalog.path), closing(connect(catalog.path, read_only=True)) as reader:
        condition, values = attributes.to_sql(reader, where, "i.id")
        found = [row[0] for row in reader.execute(f"SELECT i.id FROM images i WHERE {condition}", values)]  # noqa: S608
    total = MetadataChanges(0, 0)
    for start in range(0, len(found), _BATCH):
        if stopped():
            break
        batch = json.dumps(found[start : start + _BATCH])

        def work(connection: sqlite3.Connection, batch: str = batch) -> MetadataChanges:
            each, values = attributes.to_sql(connection, where, "i.id", each=True)
            query = f"SELECT i.key FROM json_each(?) j JOIN images i ON i.id = j.value WHERE {each}"  # noqa: S608
            keys = [row[0] for row in connection.execute(query, (batch, *values)).fetchall()]
            changed = [change_metadata(connection, key, update) for key in keys]
            return MetadataChanges(len(changed), sum(changed))

        done = catalog.writer.run(work)
        total = MetadataChanges(total.matched + done.matched, total.changed + done.changed)
    return total
