"""Files of full segments: their rows are memory-mapped, so that an index of any size is opened without reading them.

A segment of the vectors of one model has a file with ids, checksums and rows, which never change, and a second file
with its short codes, which is replaced when the code is learned again.
Guarantees: a file appears completely or not at all. A file of another owner, of another format, or with damaged ids,
checksums or codes is not opened.
Out of scope: damaged rows; the caller compares them with the checksums (see index/local/vector_files.py).

File format: one line of JSON, padded to 4,096 bytes; int64 ids, ascending; uint32 CRC-32 of each row; zeros up to a
multiple of 4,096 bytes; float16 rows of 4,096 values. Codes: one line of JSON, padded to 4,096 bytes; the codes.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.records import DIMENSIONS, checksum
from model_store.durable import atomic_file

SUFFIX = ".vectors"
FORMAT = 1
_PAGE = 4096
_ROW_BYTES = 2 * DIMENSIONS


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """An open file. ids: int64 [n], ascending; checksums: uint32 [n]; rows: mapped, read-only, uint8 [n x 8192]."""

    path: Path
    ids: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    rows: NDArray[np.uint8]


def write_segment(
    path: Path,
    owner: str,
    ids: NDArray[np.int64],
    checksums: NDArray[np.uint32],
    blocks: Iterable[NDArray[np.float16]],
) -> SegmentFile:
    """Write a segment and open it. owner: the catalog and the model. blocks: all rows, float16 [m, 4096] each.

    Raises OSError.
    """
    table = ids.tobytes() + checksums.tobytes()
    header = {"format": FORMAT, "owner": owner, "rows": len(ids), "table": zlib.crc32(table)}
    with atomic_file(path) as file:
        file.write(_header(header))
        file.write(table.ljust(_table_bytes(len(ids)), b"\0"))
        for rows in blocks:
            file.write(np.ascontiguousarray(rows).data)
    return SegmentFile(path, ids, checksums, _map(path, len(ids)))


def checksums_of(rows: NDArray[np.float16]) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row, float16 [n, 4096] -> uint32 [n]."""
    return np.array([checksum(row.data) for row in rows], np.uint32)


def open_segment(path: Path, owner: str) -> SegmentFile | None:
    """Open a file; None if it is damaged, incomplete or has another owner. Raises OSError."""
    with path.open("rb") as file:
        header = _parse(file.read(_PAGE))
        if (header.get("format"), header.get("owner")) != (FORMAT, owner):
            return None
        count = header.get("rows")
        if not isinstance(count, int) or count < 1 or path.stat().st_size != _offset(count) + count * _ROW_BYTES:
            return None
        table = file.read(12 * count)
        if zlib.crc32(table) != header.get("table"):
            return None
    ids, checksums = np.frombuffer(table, np.int64, count), np.frombuffer(table, np.uint32, count, 8 * count)
    return SegmentFile(path, ids, checksums, _map(path, count)) if np.all(np.diff(ids) > 0) else None


def write_codes(path: Path, code: str, codes: NDArray[np.uint8]) -> None:
    """Write the codes of the segment in `path`, as they are in memory. code: what computed them. Raises OSError."""
    header = {"format": FORMAT, "code": code, "codes": zlib.crc32(np.ascontiguousarray(codes).data)}
    with atomic_file(codes_path(path)) as file:
        file.write(_header(header))
        file.write(np.ascontiguousarray(codes).data)


def read_codes(path: Path, code: str, size: int) -> NDArray[np.uint8] | None:
    """Return the codes of the segment in `path`, uint8 [size]; None unless they are intact, and of `code`."""
    try:
        with codes_path(path).open("rb") as file:
            header, data = _parse(file.read(_PAGE)), file.read()
    except OSError:
        return None
    if header.get("code") != code or len(data) != size or zlib.crc32(data) != header.get("codes"):
        return None
    return np.frombuffer(data, np.uint8)


def codes_path(path: Path) -> Path:
    """Return the path of the codes of the segment in `path`."""
    return path.with_suffix(".codes")


def _map(path: Path, count: int) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(whole, np.uint8, count * _ROW_BYTES, _offset(count))


def _header(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode().ljust(_PAGE - 1) + b"\n"


def _parse(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _table_bytes(count: int) -> int:
    return -(-12 * count // _PAGE) * _PAGE


def _offset(count: int) -> int:
    return _PAGE + _table_bytes(count)
