"""Export the catalog to a Parquet file: one row for each image, in the order in which they were added.

Guarantees: the file shows the catalog at one moment; a running server can write meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from index.catalog import attributes
from index.catalog.database import CATALOG_FILE, connect, translated
from index.catalog.lock import check_exists
from index.catalog.spaces import active_space
from index.filters import Where
from index.parquet import write_parquet
from index.records import VectorModel

_GROUP_ROWS = 1024


def export_parquet(
    home: Path, target: Path, *, where: Where | None = None, advance: Callable[[int, int], None] = lambda *_: None
) -> int:
    """Write the images that match `where` to the new file `target`; return how many.

    advance: called with the numbers of images written and to write.
    Raises MissingExtraError, TargetExistsError, FilterError, IndexUnavailableError, IndexFullError, IndexReadOnlyError.
    """
    check_exists(home / "index")
    catalog = home / "index" / CATALOG_FILE
    with translated(catalog), closing(connect(catalog, read_only=True)) as connection:
        connection.execute("BEGIN")
        space, model, fingerprint = active_space(connection)
        condition, values = attributes.to_sql(connection, where, "i.id")
        [total] = connection.execute(f"SELECT count(*) FROM images i WHERE {condition}", values).fetchone()  # noqa: S608
        rows = connection.execute(
            f"""SELECT i.key, i.sha256, i.size, i.width, i.height, i.metadata, i.added, i.updated, v.vector
                FROM images i LEFT JOIN vectors v ON v.image_id = i.id AND v.space_id = ?
                WHERE {condition} ORDER BY i.id""",  # noqa: S608
            (space, *values),
        )
        groups = iter(lambda: rows.fetchmany(_GROUP_ROWS), [])
        return write_parquet(target, VectorModel(fingerprint, model), groups, lambda done: advance(done, total))
