"""Read the images of a collection on Milvus, with their vectors or without them, and the vectors of some of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.labels import LabelledVectors, value_at
from index.milvus.client import Milvus
from index.milvus.schema import id_of, key_of, vector_of
from index.points import Points

_VECTOR_BATCH: Final = 512  # 8 MB; Milvus sends 64 MB at most
_BATCH: Final = 2000  # rows in one call; 32 MB if all metadata is as long as possible


def read(milvus: Milvus, collection: str, path: Sequence[str], where: str) -> Iterator[Points]:
    """Yield the images that match the expression `where`, ordered by key. path: of the metadata field to return."""
    for rows in milvus.pages(collection, ["id", "sha256", "metadata"], size=_BATCH, where=where):
        yield Points(
            [key_of(row["id"]) for row in rows],
            [str(row["sha256"]) for row in rows],
            [value_at(json.loads(row["metadata"]), path) for row in rows],
        )


def read_vectors(milvus: Milvus, collection: str, keys: Sequence[str]) -> dict[str, NDArray[np.float16]]:
    """Return {key: float16 [4096]} of those `keys` that exist."""
    rows = milvus.rows(collection, [id_of(key) for key in keys], ["id", "vector"])
    return {key_of(row["id"]): vector_of(row) for row in rows.values()}


def read_labelled(milvus: Milvus, collection: str, path: Sequence[str], where: str) -> Iterator[LabelledVectors]:
    """Yield the images that match the expression `where`, ordered by key, with a metadata field and their vectors."""
    for rows in milvus.pages(collection, ["id", "metadata", "vector"], size=_VECTOR_BATCH, where=where):
        yield LabelledVectors(
            [key_of(row["id"]) for row in rows],
            [value_at(json.loads(row["metadata"]), path) for row in rows],
            np.stack([vector_of(row) for row in rows]),
            [],
        )
