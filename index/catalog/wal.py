"""Check SQLite's write-ahead log (WAL) for damage.

The log contains committed transactions. SQLite itself silently ignores a damaged frame and all frames after it.
Out of scope: logs that another process is writing; repairs.
References: SQLite's file format, section 4 ("The Write-Ahead Log").
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = 0x377F0682  # the lowest bit gives the byte order of the checksums
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")


def first_damaged_frame(path: Path) -> int | None:
    """Return the number of the first damaged frame, from 1; 0 if the header is damaged, None if nothing is.

    An incomplete last frame is not damage: the process was killed before it was committed. Raises OSError.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        magic, _, page_size, _, salt1, salt2, *expected = _HEADER.unpack(header)
        order = ">" if magic & 1 else "<"
        sums = _checksum(header[:24], (0, 0), order)
        if magic & ~1 != _MAGIC or list(sums) != expected or not 512 <= page_size <= 65536:
            return 0
        number, damaged = 0, None
        while len(frame := file.read(_FRAME.size + page_size)) == _FRAME.size + page_size:
            number += 1
            _, _, *salts, found1, found2 = _FRAME.unpack_from(frame)
            if damaged is None:
                sums = _checksum(frame[_FRAME.size :], _checksum(frame[:8], sums, order), order)
                if salts == [salt1, salt2] and sums == (found1, found2):
                    continue
                damaged = number
            # Frames with other salts are left over from before the log was last reset; they are not part of it.
            if salts == [salt1, salt2]:
                return damaged
    return None


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
