"""Export an index on Milvus to a Parquet file, in the format of index/parquet.py, ordered by key.

Guarantees: an image that exists and matches throughout is in the file exactly once. Replicas can write meanwhile.
Out of scope: a consistent state. An image that is added, deleted or changed meanwhile may or may not be in the file;
if it is, it is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from index.filters import Where
from index.milvus.aliases import Aliases
from index.milvus.client import Milvus
from index.milvus.registry import Registry
from index.milvus.schema import RECORD, image_schema, key_of, vector_of
from index.parquet import write_parquet
from index.records import MilvusAddress, VectorModel

_COLUMNS = [name for name in RECORD if name not in ("id", "has_picture")]
_GROUP = 512  # rows of one call: 8 MB of vectors; Milvus sends 64 MB at most


def export_from_milvus(
    address: MilvusAddress,
    target: Path,
    *,
    where: Where | None = None,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Write the matching images of an index to the new file `target`, and return how many.

    advance: called with the number of images written so far and the number of all.
    Raises MissingExtraError, TargetExistsError, FilterError, IndexUnavailableError, IndexUnreachableError,
    IndexFullError, IndexReadOnlyError.
    """
    with closing(Milvus(address)) as milvus:
        registry, searched = Registry(milvus), Aliases(milvus).read()
        if searched is None:
            return write_parquet(target, VectorModel("", ""), [])
        collection, condition = searched.collection, registry.expression(where)
        milvus.open(collection, image_schema)
        total = milvus.count(collection, condition)
        pages = milvus.pages(collection, ["id", *_COLUMNS, "vector"], size=_GROUP, where=condition)
        groups = (
            [(key_of(row["id"]), *(row[name] for name in _COLUMNS), vector_of(row).tobytes()) for row in rows]
            for rows in pages
        )
        return write_parquet(target, registry.model(collection), groups, lambda done: advance(done, max(done, total)))
