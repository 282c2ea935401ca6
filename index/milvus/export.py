"""An index on Milvus as a Parquet file, like that of an index of one machine (index/parquet.py), by key.

Promises: an image that is there, and fits, throughout is in the file once; replicas go on writing meanwhile.
Does not: hold one moment of the index still: what comes, goes or changes meanwhile is in it or not, each image whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from index.filters import Where
from index.milvus.client import Milvus
from index.milvus.registry import Meta
from index.milvus.schema import RECORD, collection_of, image_schema, key_of, vector_of
from index.milvus.spaces import check_exists
from index.parquet import ExportRow, write_parquet
from index.records import VectorModel

_GROUP = 512  # rows of one answer: 8 MB of vectors, of the 64 MB that Milvus sends at most


def export_from_milvus(
    milvus: Milvus,
    name: str,
    target: Path,
    *,
    where: Where | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> int:
    """Write the images of the index `name` that fit to the new file `target`, and return how many.

    Closes the connection. advance: as of `index.parquet.export_parquet`.
    Raises MissingExtraError, TargetExistsError, FilterError, IndexUnavailableError, IndexUnreachableError,
    IndexFullError, IndexReadOnlyError.
    """
    with closing(milvus):
        meta = Meta(milvus, name)
        check_exists(meta, milvus.place, name)
        meta.open()
        model = meta.active
        if model is None:
            return write_parquet(target, VectorModel("", ""), [])
        collection, condition = collection_of(name, model.fingerprint), meta.expression(where)
        milvus.open(collection, image_schema)
        total = milvus.count(collection, condition)
        report = None if advance is None else lambda done: advance(done, max(done, total))
        return write_parquet(target, model, _groups(milvus, collection, condition), advance=report)


def _groups(milvus: Milvus, collection: str, condition: str) -> Iterator[list[ExportRow]]:
    for rows in milvus.pages(collection, [*RECORD, "vector"], size=_GROUP, where=condition):
        yield [
            (
                key_of(row["id"]),
                row["sha256"],
                row["size"],
                row["width"],
                row["height"],
                row["metadata"],
                row["added"],
                row["updated"],
                vector_of(row).tobytes(),
            )
            for row in rows
        ]
