"""The searcher's rows in one file, so that a start reads them in one go; derived, and never trusted.

Promises: every row read is checked against the catalogue's checksum, and whatever is missing, damaged or of another
catalogue comes from the catalogue instead; a file is replaced whole or not at all.
Does not: hold anything that the catalogue has not; deleting it costs a slower start.

The file: one line of JSON (format, the catalogue's identity, the model's fingerprint, the number of rows, a
checksum of the ids) padded to 4,096 bytes; int64 vector ids, ascending; float16 rows of 4,096.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.errors import IndexCorruptError
from index.records import DIMENSIONS, checksum
from index.search.searcher import Searcher

FORMAT = 2
_HEADER_BYTES = 4096
_ROW_BYTES = 2 * DIMENSIONS
_BLOCK = 1024


def write_snapshot(path: Path, searcher: Searcher, identity: str, fingerprint: str) -> None:
    """Write the searcher's rows to `path`, replacing what was there. Nobody may change the searcher meanwhile.

    Raises OSError, with the old file as it was.
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
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(header.encode().ljust(_HEADER_BYTES - 1) + b"\n")
            file.write(ids.tobytes())
            for _, rows in searcher.blocks():
                file.write(np.ascontiguousarray(rows).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def load(searcher: Searcher, catalog: Catalog, space: int, path: Path, fingerprint: str) -> int:
    """Fill an empty searcher with all vectors of `space`. Returns how many of them the snapshot did not have.

    Raises IndexCorruptError when a vector in the catalogue differs from its checksum.
    """
    ids, checksums = catalog.vector_checksums(space)
    read = 0
    with contextlib.ExitStack() as stack:
        snapshot = _open(path, catalog.identity, fingerprint)
        if snapshot is not None:
            stack.enter_context(snapshot[0])
        for start in range(0, len(ids), _BLOCK):
            wanted = slice(start, start + _BLOCK)
            rows = np.empty((len(ids[wanted]), DIMENSIONS), np.float16)
            missing = np.ones(len(rows), np.bool_)
            if snapshot is not None:
                _take(snapshot, ids[wanted], checksums[wanted], rows, missing)
            places = np.flatnonzero(missing)
            if places.size:
                rows[places] = catalog.vectors(ids[wanted][places].tolist())
                for place in places:
                    if checksum(rows[place]) != checksums[wanted][place]:
                        key = catalog.describe([int(ids[wanted][place])])[int(ids[wanted][place])][0]
                        raise IndexCorruptError(catalog.path, f"the vector of {key!r} differs from its checksum")
            read += places.size
            searcher.apply(ids[wanted], rows)
    return read


def damage(path: Path, catalog: Catalog, space: int, fingerprint: str) -> str | None:
    """Return what is wrong with the file, None when nothing is, or when it is not there."""
    if not path.exists():
        return None
    snapshot = _open(path, catalog.identity, fingerprint)
    if snapshot is None:
        return "is damaged, or of another index or model"
    with snapshot[0]:
        ids, checksums = catalog.vector_checksums(space)
        here = np.isin(ids, snapshot[1], assume_unique=True)
        ids, checksums = ids[here], checksums[here]
        for start in range(0, len(ids), _BLOCK):
            block = slice(start, start + _BLOCK)
            missing = np.ones(len(ids[block]), np.bool_)
            rows = np.empty((len(missing), DIMENSIONS), np.float16)
            _take(snapshot, ids[block], checksums[block], rows, missing)
            if missing.any():
                return f"differs from the catalogue in vector {ids[block][missing][0]}"
    return None


def _open(path: Path, identity: str, fingerprint: str) -> tuple[BinaryIO, NDArray[np.int64]] | None:
    """Return the open file and its ids; None when there is none that belongs to this catalogue and model."""
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
            if zlib.crc32(ids.tobytes()) != header["ids"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if np.any(np.diff(ids) <= 0):
            return None
        stack.pop_all()
        return file, ids


def _take(
    snapshot: tuple[BinaryIO, NDArray[np.int64]],
    ids: NDArray[np.int64],
    checksums: NDArray[np.uint32],
    rows: NDArray[np.float16],
    missing: NDArray[np.bool_],
) -> None:
    """Copy those of `ids` that the snapshot has, each as the catalogue's checksum says, into `rows`."""
    file, known = snapshot
    places = np.searchsorted(known, ids)
    here = np.flatnonzero(np.isin(ids, known, assume_unique=True))
    for run in _runs(places, here):
        file.seek(_HEADER_BYTES + 8 * len(known) + _ROW_BYTES * int(places[run[0]]))
        data = file.read(_ROW_BYTES * len(run))
        for number, row in enumerate(run):
            values = data[_ROW_BYTES * number : _ROW_BYTES * (number + 1)]
            if len(values) == _ROW_BYTES and checksum(values) == checksums[row]:
                rows[row] = np.frombuffer(values, np.float16)
                missing[row] = False


def _runs(places: NDArray[np.int64], here: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split the rows `here` where their places in the file do not follow each other."""
    if here.size:
        yield from np.split(here, np.flatnonzero(np.diff(places[here]) != 1) + 1)
