"""A cache of the vectors in one file, so that they can be read sequentially when the index is opened.

Guarantees: every cached vector is compared with the catalog's checksum. A vector that is missing or damaged, and every
vector of a file of another index or model, is read from the catalog instead. The file is replaced atomically.
Out of scope: storing anything that is not in the catalog. Deleting the file only makes the next start slower.

File format: one line of JSON (format, the catalog's identity, the model's fingerprint, the number of vectors, a
checksum of the ids) padded to 4,096 bytes; int64 vector ids, ascending; float16 vectors of 4,096 values.
"""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.errors import IndexCorruptError
from index.records import DIMENSIONS, checksum
from index.search.searcher import Searcher
from model_store.durable import atomic_file

CACHE_FILE = "vectors.snapshot"
FORMAT = 2
_HEADER_BYTES = 4096
_ROW_BYTES = 2 * DIMENSIONS
_BLOCK = 1024


def write_cache(path: Path, searcher: Searcher, identity: str, fingerprint: str) -> None:
    """Replace the cache file by the searcher's vectors. The searcher must not change meanwhile.

    Raises OSError; the old file is unchanged then.
    """
    ids = searcher.ids()
    header = json.dumps(
        {
            "format": FORMAT,
            "catalogue": identity,
            "fingerprint": fingerprint,
            "rows": len(ids),
            "ids": zlib.crc32(ids.tobytes()),
        }
    )
    for leftover in path.parent.glob(f".{path.name}.*"):  # temporary files of processes that were killed
        leftover.unlink(missing_ok=True)
    with atomic_file(path) as file:
        file.write(header.encode().ljust(_HEADER_BYTES - 1) + b"\n")
        file.write(ids.tobytes())
        for _, rows in searcher.blocks():
            file.write(np.ascontiguousarray(rows).data)


def load_vectors(searcher: Searcher, catalog: Catalog, space: int, path: Path, fingerprint: str) -> int:
    """Fill an empty searcher with all vectors of `space`. Returns how many of them were not in the cache file.

    Raises IndexCorruptError if a vector in the catalog does not match its checksum.
    """
    ids, checksums = catalog.vector_checksums(space)
    not_cached = 0
    cache = _Cache.open(path, catalog.identity, fingerprint) or _Cache(io.BytesIO(), np.empty(0, np.int64))
    with cache.file:
        for start in range(0, len(ids), _BLOCK):
            block_ids, block_checksums = ids[start : start + _BLOCK], checksums[start : start + _BLOCK]
            rows, missing = cache.read(block_ids, block_checksums)
            if missing.size:
                rows[missing] = catalog.vectors(block_ids[missing].tolist())
                for row in missing:
                    if checksum(rows[row]) != block_checksums[row]:
                        vector_id = int(block_ids[row])
                        key = catalog.describe([vector_id])[vector_id][0]
                        raise IndexCorruptError(catalog.path, f"the vector of {key!r} differs from its checksum")
            not_cached += missing.size
            searcher.apply(block_ids, rows)
    return not_cached


def find_damage(path: Path, catalog: Catalog, space: int, fingerprint: str) -> str | None:
    """Describe the damage to the cache file. Returns None if it is intact or does not exist."""
    if not path.exists():
        return None
    cache = _Cache.open(path, catalog.identity, fingerprint)
    if cache is None:
        return "is damaged, or belongs to another index or model"
    with cache.file:
        ids, checksums = catalog.vector_checksums(space)
        cached = np.isin(ids, cache.ids, assume_unique=True)
        ids, checksums = ids[cached], checksums[cached]
        for start in range(0, len(ids), _BLOCK):
            block_ids = ids[start : start + _BLOCK]
            _, missing = cache.read(block_ids, checksums[start : start + _BLOCK])
            if missing.size:
                return f"differs from the catalog in vector {block_ids[missing[0]]}"
    return None


@dataclass(frozen=True, slots=True)
class _Cache:
    """An open cache file, and the ids of the vectors in it, ascending."""

    file: BinaryIO
    ids: NDArray[np.int64]

    @classmethod
    def open(cls, path: Path, identity: str, fingerprint: str) -> _Cache | None:
        """Open the file. Returns None unless it is intact and belongs to this catalog and model."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("rb"))
                header = json.loads(file.read(_HEADER_BYTES))
                found = (header["format"], header["catalogue"], header["fingerprint"])
                rows = header["rows"]
                if found != (FORMAT, identity, fingerprint) or type(rows) is not int:
                    return None
                if path.stat().st_size != _HEADER_BYTES + rows * (8 + _ROW_BYTES):
                    return None
                ids = np.frombuffer(file.read(8 * rows), np.int64)
                if zlib.crc32(ids.tobytes()) != header["ids"] or np.any(np.diff(ids) <= 0):
                    return None
            except (OSError, ValueError, KeyError, TypeError):
                return None
            stack.pop_all()
            return cls(file, ids)

    def read(
        self, ids: NDArray[np.int64], checksums: NDArray[np.uint32]
    ) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """Return the vectors of `ids`, float16 [n, 4096], and the numbers of the rows that are not cached or damaged.

        The content of these rows is undefined.
        """
        rows = np.empty((len(ids), DIMENSIONS), np.float16)
        missing = np.ones(len(ids), np.bool_)
        positions = np.searchsorted(self.ids, ids)
        cached = np.flatnonzero(np.isin(ids, self.ids, assume_unique=True))
        # Runs that are consecutive in the file, so that each is read with one call.
        runs = np.split(cached, np.flatnonzero(np.diff(positions[cached]) != 1) + 1) if cached.size else []
        for run in runs:
            self.file.seek(_HEADER_BYTES + 8 * len(self.ids) + _ROW_BYTES * int(positions[run[0]]))
            data = self.file.read(_ROW_BYTES * len(run))
            for number, row in enumerate(run):
                values = data[_ROW_BYTES * number : _ROW_BYTES * (number + 1)]
                if len(values) == _ROW_BYTES and checksum(values) == checksums[row]:
                    rows[row] = np.frombuffer(values, np.float16)
                    missing[row] = False
        return rows, np.flatnonzero(missing)
