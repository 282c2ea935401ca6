"""Images to add to an index, each derived from a number, and functions that open the index under test."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.duplicates import Duplicates
from index.interface import ImageIndex
from index.local.index import LocalImageIndex
from index.milvus.index import MilvusImageIndex
from index.records import IndexOptions, MilvusAddress, NewImage

MODEL = {"fingerprint": "f" * 64, "model": "solar:1"}
_RANK = 40
LABELS = ["heron", "gull", "ferry"]


class Opener(Protocol):
    """Opens the index of the tests' first model, on this machine or on Milvus."""

    def __call__(self, home: Path, **options: Any) -> ImageIndex:
        """Open the index of `home`; the options are the fields of IndexOptions."""


def vector(number: int) -> NDArray[np.float32]:
    """Return fc7-like activations: float32 [4096], none negative, one third of them not zero."""
    values = np.random.default_rng(number).standard_normal(4096, dtype=np.float32)
    activations: NDArray[np.float32] = np.maximum(values - 0.4, 0)
    return activations


def activations(n: int, seed: int = 0) -> NDArray[np.float16]:
    """Return non-negative vectors like those of fc7, with most of their variance in few directions."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(99).standard_normal((_RANK, 4096), dtype=np.float32)
    axes *= (1 / np.sqrt(1 + np.arange(_RANK, dtype=np.float32)))[:, None]
    noise = 0.3 * rng.standard_normal((n, 4096), dtype=np.float32)
    return np.maximum(rng.standard_normal((n, _RANK), dtype=np.float32) @ axes + noise, 0).astype(np.float16)


def picture(number: int) -> bytes:
    """Return bytes that take the place of a stored JPEG."""
    return np.random.default_rng(number).bytes(3000)


def sha256(number: int) -> str:
    """Return the hash of `picture(number)`."""
    return hashlib.sha256(picture(number)).hexdigest()


def image(key: str | None, number: int, metadata: dict[str, Any] | None = None) -> NewImage:
    """Return the image of `number` with this key."""
    return NewImage(key, sha256(number), 3000, 640, 480, metadata, picture(number), vector(number))


def open_index(home: Path, **options: Any) -> LocalImageIndex:
    """Open the index of the tests' first model."""
    return LocalImageIndex.open(home, index_options(**options))


def index_options(**options: Any) -> IndexOptions:
    """Return options for the tests' first model, unless they name another model."""
    return IndexOptions(**{**MODEL, **options})


def open_on_milvus() -> Iterator[Opener]:
    """Yield a function that opens an index on Milvus Lite in a file of `home`, and stop Milvus Lite afterwards."""
    from milvus_lite.server_manager import server_manager_instance  # noqa: PLC0415

    opened: set[str] = set()

    def open_index(home: Path, **options: Any) -> MilvusImageIndex:
        home.mkdir(exist_ok=True)
        uri = str(home / "milvus.db")
        opened.add(uri)
        return MilvusImageIndex.open(MilvusAddress(uri, timeout_s=60), index_options(**options))

    yield open_index
    for uri in opened:
        server_manager_instance.release_server(uri)


def exact(vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the Euclidean distances between float16 values, computed with NumPy."""
    rounded = vectors.astype(np.float16).astype(np.float64)
    return np.asarray(np.linalg.norm(rounded - query.astype(np.float16).astype(np.float64), axis=1))


def add_labeled_images(home: Path) -> None:
    """Add three images with metadata, one at a time, under the keys LABELS."""
    with open_index(home) as index:
        for n, label in enumerate(LABELS):
            index.add_many([image(label, n, {"label": label, "n": n, "tags": ["a", label]})])


def all_rows(catalog: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables of a database."""
    connection = sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in tables}
    finally:
        connection.close()


def grouped(found: Duplicates) -> list[list[str]]:
    """Return the keys of each group of near-duplicates, the one to keep first."""
    return [[group.keep.key, *(image.key for image in group.others)] for group in found.groups]


def truncate_to_half(path: Path) -> None:
    """Cut off the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
