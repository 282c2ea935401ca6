"""How an image lies in Milvus: the collections of an index, their fields, and an image as one row.

A collection holds the images with their vectors of one model, each image one row, so that Milvus changes it whole; one
more holds what all replicas must agree on: which collection is searched, and the fields that filters can name.
Promises: what a user wrote (keys, metadata) is never part of an expression: a row's id is its key in hexadecimal, which
sorts as the key does by code point.
Does not: talk to Milvus.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import IndexLimitError
from index.milvus.filters import MAX_TOKENS, TOKEN_LENGTH, bounds, tokens
from index.records import DIMENSIONS, MAX_KEY_LENGTH, ImageRecord

Row = dict[str, Any]
MOST_ROWS = 16_384
"""What Milvus answers at most in one call."""
RECORD = ["id", "sha256", "size", "width", "height", "metadata", "added", "updated", "has_picture"]
STATE = ["id", "sha256", "metadata", "added", "updated", "has_picture"]
WHOLE = [*RECORD, "picture", "vector"]
IMAGES_INFIX = "_images_"
META_SUFFIX = "_meta"
_VARCHAR = 65_535  # bytes: Milvus's longest text
_PART = 49_149  # bytes of a picture in one text, as base64
_PARTS = 8
_ID = re.compile(r"([0-9a-f]{2}){1,800}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def collection_of(name: str, fingerprint: str) -> str:
    """Return the name of the collection with the vectors of one model."""
    return f"{name}{IMAGES_INFIX}{fingerprint[:32]}"


def image_schema(milvus: Any) -> Any:
    """Return the schema of a collection of images; `milvus` is the module pymilvus."""
    kinds = milvus.DataType
    schema = milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.VARCHAR, max_length=8 * MAX_KEY_LENGTH, is_primary=True)
    # float32, though the values are those of float16: Milvus Lite knows no FLOAT16_VECTOR, and one schema serves both.
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=DIMENSIONS)
    schema.add_field("sha256", kinds.VARCHAR, max_length=64)
    for name in ("size", "width", "height", "added", "updated"):
        schema.add_field(name, kinds.INT64)
    schema.add_field("metadata", kinds.VARCHAR, max_length=_VARCHAR)
    schema.add_field(
        "tokens", kinds.ARRAY, element_type=kinds.VARCHAR, max_capacity=MAX_TOKENS, max_length=TOKEN_LENGTH
    )
    schema.add_field("bounds", kinds.JSON)
    schema.add_field("has_picture", kinds.BOOL)
    # On the disk of the query nodes: no search reads pictures, and they would take more memory than the vectors.
    schema.add_field(
        "picture",
        kinds.ARRAY,
        element_type=kinds.VARCHAR,
        max_capacity=_PARTS,
        max_length=_VARCHAR,
        mmap_enabled=True,
    )
    return schema


def meta_schema(milvus: Any) -> Any:
    """Return the schema of the collection that all replicas agree by."""
    kinds = milvus.DataType
    schema = milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.VARCHAR, max_length=128, is_primary=True)
    schema.add_field("value", kinds.VARCHAR, max_length=_VARCHAR)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # Milvus takes no collection without one
    return schema


def id_of(key: str) -> str:
    """Return the id of the row of an image."""
    return key.encode().hex()


def key_of(row_id: str) -> str:
    """Return the key of the image in the row with this id."""
    return bytes.fromhex(row_id).decode()


def is_id(text: object) -> bool:
    """Tell whether this can be a row's id: what comes from outside is never put into an expression unseen."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def ids_in(ids: Sequence[str]) -> str:
    """Return the expression that is true for these rows."""
    return f"id in [{','.join(json.dumps(each) for each in ids)}]"


def searchable(metadata: str) -> Row:
    """Return the fields of a row by which filters find it, and the metadata (JSON) itself."""
    values = json.loads(metadata)
    return {"metadata": metadata, "tokens": tokens(values), "bounds": bounds(values)}


def picture_fields(key: str, picture: bytes | None) -> Row:
    """Return the fields of a row that hold its picture. Raises IndexLimitError for one that is too large."""
    data = picture or b""
    if len(data) > _PARTS * _PART:
        raise IndexLimitError(f"The picture of {key!r} has {len(data):,} bytes", _PARTS * _PART)
    parts = [base64.b64encode(data[start : start + _PART]).decode() for start in range(0, len(data), _PART)]
    return {"has_picture": picture is not None, "picture": parts}


def picture_of(row: Mapping[str, Any]) -> bytes | None:
    """Return the picture in a row, None when it has none."""
    if not row["has_picture"]:
        return None
    return b"".join(base64.b64decode(part) for part in row["picture"])


def vector_of(row: Mapping[str, Any]) -> NDArray[np.float16]:
    """Return the vector in a row, float16 [4096]: the very one that was put in."""
    return np.asarray(row["vector"], np.float32).astype(np.float16)


def record_of(row: Mapping[str, Any]) -> ImageRecord:
    """Return the image that is in a row."""
    return ImageRecord(
        key=key_of(row["id"]),
        sha256=row["sha256"],
        size=row["size"],
        width=row["width"],
        height=row["height"],
        metadata=json.loads(row["metadata"]),
        added=_EPOCH + timedelta(microseconds=row["added"]),
        updated=_EPOCH + timedelta(microseconds=row["updated"]),
        has_picture=bool(row["has_picture"]),
    )
