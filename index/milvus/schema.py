"""How an index is stored in Milvus: its collections, their fields, and an image as one row.

Each model has a collection with all images and their vectors of this model. An image is one row, so that Milvus changes
it as a whole. One more collection holds what all replicas share: the searched collection and the known fields.
Guarantees: text of users (keys, metadata) is never part of an expression. The id of a row is its key in hexadecimal,
which sorts like the key by code point.
Out of scope: talking to Milvus.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import IndexLimitError
from index.milvus.filters import MAX_TOKENS, TOKEN_LENGTH, bounds, tokens
from index.records import DIMENSIONS, MAX_KEY_LENGTH, ImageRecord
from model_store.image import PREPARATION

Row = dict[str, Any]
MAX_ROWS = 16_384  # limit of Milvus for one call
RECORD = ["id", "sha256", "size", "width", "height", "metadata", "added", "updated", "has_picture"]
STATE = ["id", "sha256", "preparation", "metadata", "added", "updated", "has_picture"]
WITH_PICTURE = [*RECORD, "preparation", "picture"]
WHOLE = [*WITH_PICTURE, "vector"]
META_SUFFIX = "_meta"
OUTDATED = f"preparation < {PREPARATION}"
"""Expression that matches the images of an earlier preparation."""
_VARCHAR = 65_535  # bytes; limit of Milvus for a text
_PART = 49_149  # bytes of a picture that fit into one text as base64
_PARTS = 8
_ID = re.compile(r"([0-9a-f]{2}){1,800}")


def collection_of(name: str, fingerprint: str) -> str:
    """Return the name of the collection with the vectors of one model."""
    return f"{name}_images_{fingerprint[:32]}"


def image_schema(milvus: Any) -> Any:
    """Return the schema of a collection of images; `milvus` is the module pymilvus."""
    kinds = milvus.DataType
    schema = milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.VARCHAR, max_length=8 * MAX_KEY_LENGTH, is_primary=True)
    # float32, although the values are float16: Milvus Lite has no FLOAT16_VECTOR, and both use the same schema.
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=DIMENSIONS)
    schema.add_field("sha256", kinds.VARCHAR, max_length=64)
    for name in ("size", "width", "height", "added", "updated", "preparation"):
        schema.add_field(name, kinds.INT64)
    schema.add_field("metadata", kinds.VARCHAR, max_length=_VARCHAR)
    schema.add_field(
        "tokens", kinds.ARRAY, element_type=kinds.VARCHAR, max_capacity=MAX_TOKENS, max_length=TOKEN_LENGTH
    )
    schema.add_field("bounds", kinds.JSON)
    schema.add_field("has_picture", kinds.BOOL)
    # Memory-mapped: no search reads pictures, and they would use more memory than the vectors.
    schema.add_field(
        "picture", kinds.ARRAY, element_type=kinds.VARCHAR, max_capacity=_PARTS, max_length=_VARCHAR, mmap_enabled=True
    )
    return schema


def meta_schema(milvus: Any) -> Any:
    """Return the schema of the collection that holds the shared state of all replicas."""
    kinds = milvus.DataType
    schema = milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.VARCHAR, max_length=128, is_primary=True)
    schema.add_field("value", kinds.VARCHAR, max_length=_VARCHAR)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # Milvus requires a vector field in every collection
    return schema


def id_of(key: str) -> str:
    """Return the id of an image's row."""
    return key.encode().hex()


def key_of(row_id: str) -> str:
    """Return the key of the image in the row with this id."""
    return bytes.fromhex(row_id).decode()


def is_id(text: object) -> bool:
    """Return whether this is a valid row id. Must be checked before text of a user becomes part of an expression."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def ids_in(ids: Sequence[str]) -> str:
    """Return the expression that matches these rows."""
    return f"id in [{','.join(json.dumps(each) for each in ids)}]"


def searchable(metadata: str) -> Row:
    """Return the metadata (JSON) and the fields that filters use, as fields of a row."""
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
    """Return the picture in a row, or None if it has none."""
    if not row["has_picture"]:
        return None
    return b"".join(base64.b64decode(part) for part in row["picture"])


def vector_of(row: Mapping[str, Any]) -> NDArray[np.float16]:
    """Return the vector in a row, float16 [4096], bit for bit as it was stored."""
    return np.asarray(row["vector"], np.float32).astype(np.float16)


def record_of(row: Mapping[str, Any]) -> ImageRecord:
    """Return the record of the image in a row."""
    return ImageRecord.from_row([key_of(row["id"]), *(row[name] for name in RECORD[1:])])
