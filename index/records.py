"""Data classes of the index, and the validation of keys, metadata and vectors.

Guarantees: what passes `check_key`, `encode_metadata` and `encode_vectors` can be stored and is read back unchanged.
Out of scope: reading or writing files.
"""

from __future__ import annotations

import json
import time
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from index.errors import InvalidKeyError, MetadataError, VectorError
from model_store.errors import ShapeError
from model_store.image import PREPARATION

DIMENSIONS = 4096
MAX_KEY_LENGTH = 200
MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 8
_FLOAT16_MAX = 65504.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AddOutcome(StrEnum):
    """The effect of adding one image."""

    ADDED = "added"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to add.

    key: 1 to 200 characters; None uses `sha256` as the key. sha256: of the file's bytes, in hexadecimal. size: of the
    file, in bytes. width, height: of the original after applying its EXIF orientation, in pixels. metadata: a JSON
    object; None keeps the metadata that the key already has. picture: the prepared 256x256 JPEG, or None. vector:
    float32 [4096], the fc7 activations; stored as float16. vectors: vectors of several models, by model fingerprint,
    with the same models for all images of a call; if empty, `vector` was made by the index's model. preparation: the
    version of the preparation (`model_store.image.PREPARATION`) that made the picture and the vectors.
    """

    key: str | None
    sha256: str
    size: int
    width: int
    height: int
    metadata: Mapping[str, Any] | None
    picture: bytes | None
    vector: NDArray[np.float32]
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    preparation: int = PREPARATION


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image in the catalog. Times are in UTC, `size` is in bytes."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: dict[str, Any]
    added: datetime
    updated: datetime
    has_picture: bool

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Return the record of a stored image. row: these fields in order; metadata is JSON, times are as in `now`."""
        key, sha256, size, width, height, metadata, added_us, updated_us, has_picture = row
        times = time_of(added_us), time_of(updated_us)
        return cls(key, sha256, size, width, height, json.loads(metadata), *times, bool(has_picture))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A search result. distance: Euclidean (not squared), between float16 fc7 vectors."""

    key: str
    distance: float
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; `next_cursor` is None on the last page."""

    images: list[ImageRecord]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class FastCode:
    """The code of the search mode `fast`.

    recall: share of the 10 exact neighbors that it finds, as last measured; None if not measured. changed: number of
    vectors added and removed since it was learned, relative to the vectors that exist. learned: seconds since 1970.
    """

    recall: float | None
    changed: float
    learned: float


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a device holds for searches. name: such as "cuda:0". vectors, codes: how many were copied.

    bytes: memory of all copies.
    """

    name: str
    vectors: int
    codes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Counts and sizes in bytes. images: all images; vectors: the searchable ones, made by `model`.

    outdated: images that an earlier version of the preparation prepared.
    fast: the code of the mode `fast`; None if there is none, or if the index is not open.
    device: what a CUDA device holds; None if the CPU searches.
    """

    images: int
    vectors: int
    bytes_on_disk: int
    bytes_in_memory: int
    mode: str
    model: str
    fingerprint: str
    outdated: int
    fast: FastCode | None = None
    device: DeviceUse | None = None


@dataclass(frozen=True, slots=True)
class VectorModel:
    """The model that made some vectors: its fingerprint and its display name, such as "solar:1"."""

    fingerprint: str
    model: str


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How to open an index.

    fingerprint, model: of the model that embeds the images and queries, and its name to show, such as "solar:1".
    keep_pictures: store the prepared picture of every added image.
    switch: search this model's vectors even if images have none; search finds these images once they are added again.
    migrate: if images have no vector of this model, search the previous vectors until all have one.
    keep_previous: keep the previous vectors for a rollback (local index only).
    read_only: take no lock, reject writes, and show the state at the time of opening.
    threads: CPU cores for one search; by default all that this process may use (local index only).
    fast_from: number of vectors from which on the codes of the mode `fast` are trained; None: never (local index only).
    device: what searches: "cpu", "cuda", "cuda:N", or "auto" for CUDA if FAISS can use it (local index only).
    device_memory: limit of the vectors and codes on the CUDA device, in bytes.
    """

    fingerprint: str
    model: str
    keep_pictures: bool = True
    switch: bool = False
    migrate: bool = False
    keep_previous: bool = True
    read_only: bool = False
    threads: int | None = None
    fast_from: int | None = None
    device: str = "cpu"
    device_memory: int = 4_000_000_000

    @property
    def vector_model(self) -> VectorModel:
        """The model that embeds the images and queries."""
        return VectorModel(self.fingerprint, self.model)


@dataclass(frozen=True, slots=True)
class MilvusAddress:
    """Where an index on Milvus is stored.

    uri: http://HOST:19530, https://HOST, or a file ending in .db for Milvus Lite. token: "user:password" or an API key.
    name: prefix of the names of its collections. timeout_s: time limit of each call to Milvus, in seconds.
    """

    uri: str
    token: str | None = field(default=None, repr=False)
    name: str = "fc7"
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Space:
    """A vector space: the stored vectors of one model. `SearchSpace` is the same in memory.

    missing_vectors: how many images have no vector of this model. kept: it is the previous space, kept for a rollback.
    target: the index is migrating to it.
    """

    id: int
    fingerprint: str
    model: str
    active: bool
    vectors: int
    missing_vectors: int
    kept: bool = False
    target: bool = False


@dataclass(frozen=True, slots=True)
class Unembedded:
    """An image without a vector in some space. A changed `sha256` means that it was replaced since."""

    id: int
    key: str
    sha256: str
    picture: bytes | None


def check_key(key: str) -> str:
    """Return `key` if it is valid. Raises InvalidKeyError."""
    if not key:
        raise InvalidKeyError(key, "is empty")
    if key in (".", ".."):
        raise InvalidKeyError(key, "is a relative path, which no URL can name")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidKeyError(key, f"has {len(key)} characters")
    for character in key:
        # Cs: lone surrogates. File names that are not UTF-8 decode to them, and SQLite cannot store them.
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InvalidKeyError(key, f"contains {character!a}")
    return key


def encode_metadata(metadata: Mapping[str, Any]) -> str:
    """Return `metadata` as compact JSON with sorted names, so that equal objects give equal strings.

    Raises MetadataError unless it is an object with string names, JSON values (no NaN), 16 KB and 8 levels at most.
    """
    if not isinstance(metadata, Mapping):
        raise MetadataError(f"is a {type(metadata).__name__}, not an object")
    _check_json(metadata, MAX_METADATA_DEPTH)
    text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise MetadataError("contains a string that is not valid Unicode") from None
    if size > MAX_METADATA_BYTES:
        raise MetadataError(f"has {size} bytes")
    return text


def _check_json(value: object, levels: int) -> None:
    """Raise MetadataError for what JSON cannot represent, before the encoder recurses into it."""
    if isinstance(value, Mapping | list | tuple):
        if levels == 0:
            raise MetadataError(f"is nested deeper than {MAX_METADATA_DEPTH} levels")
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, str):
                    raise MetadataError(f"has the name {name!r}, which is not a string")
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_json(item, levels - 1)
    elif isinstance(value, float):
        if not np.isfinite(value):
            raise MetadataError(f"contains {value}, which JSON cannot represent")
    elif not isinstance(value, str | int | None):
        raise MetadataError(f"contains a {type(value).__name__}, which JSON cannot represent")


def encode_vectors(vectors: NDArray[np.float32] | Sequence[NDArray[np.float32]]) -> NDArray[np.float16]:
    """Round vectors, float32 [n, 4096], to the float16 [n, 4096] that are stored and compared.

    Raises ShapeError for another shape, VectorError for NaN, infinity or a value beyond ±65504.
    """
    for row, vector in enumerate(vectors):
        if np.shape(vector) != (DIMENSIONS,):
            raise ShapeError(f"vector {row}", f"[{DIMENSIONS}]", str(list(np.shape(vector))))
    values = np.asarray(vectors, dtype=np.float32).reshape(-1, DIMENSIONS)
    largest = np.max(np.abs(values), axis=1, initial=0.0)
    # Negated, so that NaN is found too: every comparison with NaN is false.
    bad = np.flatnonzero(~(largest <= _FLOAT16_MAX))
    if bad.size:
        raise VectorError(f"{bad[0]} has a largest magnitude of {largest[bad[0]]}")
    return values.astype(np.float16)


def now() -> int:
    """Return the current time as it is stored: in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def time_of(microseconds: int) -> datetime:
    """Return a time that is stored as in `now`."""
    return _EPOCH + timedelta(microseconds=microseconds)


def checksum(row: NDArray[np.float16] | bytes) -> int:
    """Return the CRC-32 of one stored vector, which detects flipped bits on disk."""
    return zlib.crc32(row if isinstance(row, bytes) else row.tobytes())


class SnapshotManifest(BaseModel):
    """Manifest of a snapshot. size: of the catalog, in bytes. model, fingerprint: of the active vector space."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    created: datetime
    catalog: Annotated[str, Field(alias="catalogue")]  # the spelling in the file
    schema_version: Annotated[int, Field(ge=1)]
    images: int
    vectors: int
    model: str
    fingerprint: str
    size: int
    sha256: str
