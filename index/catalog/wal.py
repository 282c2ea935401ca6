"""Is SQLite's write-ahead log whole? It holds what was committed, but SQLite takes a damaged log for a shorter one.

Does not: run beside a process that writes the log; change anything.
Source: SQLite's file format, section 4 ("The Write-Ahead Log").
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = 0x377F0682  # its lowest bit tells the byte order of the checksums
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")


def first_damaged_frame(path: Path) -> int | None:
    """Return the number, from 1, of the first frame that is not as it was written; 0: the header; None: all is well.

    A last frame that was cut by a kill is well: it was not committed. Raises OSError.
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
        number, broken = 0, None
        while len(frame := file.read(_FRAME.size + page_size)) == _FRAME.size + page_size:
            number += 1
            _, _, *salts, found1, found2 = _FRAME.unpack_from(frame)
            if broken is None:
                sums = _checksum(frame[_FRAME.size :], _checksum(frame[:8], sums, order), order)
                if salts == [salt1, salt2] and sums == (found1, found2):
                    continue
                broken = number
            # Old frames, from before the log was begun anew, have other salts: nothing was lost with them.
            if salts == [salt1, salt2]:
                return broken
    return None


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
