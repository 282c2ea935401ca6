"""Read the stored vectors of one vector space together with a metadata field.

Guarantees: all batches show the catalog at one moment; a running server can write meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from index.catalog import attributes
from index.catalog.database import connect, translated
from index.errors import IndexModelError
from index.filters import Where
from index.labels import LabelledVectors, value_at
from index.records import DIMENSIONS

_BATCH: Final = 1024  # images; 8 MB of vectors


def labelled_vectors(
    catalog: Path, fingerprint: str, path: Sequence[str], where: Where | None
) -> Iterator[LabelledVectors]:
    """Yield the images that match, in the order in which they were added, with their vectors of one model.

    path: of the metadata field. Raises IndexModelError if the index has no vectors of the model, FilterError.
    """
    with translated(catalog), closing(connect(catalog, read_only=True)) as connection:
        connection.execute("BEGIN")
        spaces = {row[1]: row for row in connection.execute("SELECT id, fingerprint, model FROM spaces")}
        if fingerprint not in spaces:
            [images] = connection.execute("SELECT count(*) FROM images").fetchone()
            known = ", ".join(model for _, _, model in spaces.values())
            raise IndexModelError(catalog.parent, known or "no model", "the requested model", images)
        condition, values = attributes.to_sql(connection, where, "i.id")
        rows = connection.execute(
            f"""SELECT i.key, i.metadata, v.vector FROM images i
                LEFT JOIN vectors v ON v.image_id = i.id AND v.space_id = ?
                WHERE {condition} ORDER BY i.id""",  # noqa: S608
            (spaces[fingerprint][0], *values),
        )
        for batch in iter(lambda: rows.fetchmany(_BATCH), []):
            yield _of(batch, path)


def _of(rows: Sequence[tuple[str, str, bytes | None]], path: Sequence[str]) -> LabelledVectors:
    found: list[Any] = [value_at(json.loads(metadata), path) for _, metadata, _ in rows]
    stored = [row[2] for row in rows]
    return LabelledVectors(
        [row[0] for row in rows if row[2] is not None],
        [value for value, vector in zip(found, stored, strict=True) if vector is not None],
        np.frombuffer(b"".join(each for each in stored if each is not None), np.float16).reshape(-1, DIMENSIONS),
        [value for value, vector in zip(found, stored, strict=True) if vector is None],
    )
