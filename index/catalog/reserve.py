"""Disk space that is set aside, so that images can still be deleted when the disk is full.

SQLite writes a deletion to its write-ahead log first, which needs space too. The log keeps the space that it got, so
one reserve is enough for any number of deletions.
Out of scope: file systems that copy on write, or compress; they may need space for any change.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

RESERVE_FILE: Final = "reserve"
_BYTES: Final = 4_000_000


class Reserve:
    """The file `reserve` in the folder of an index."""

    def __init__(self, folder: Path) -> None:
        """Create the file if there is enough space for it."""
        self._path = folder / RESERVE_FILE
        if self._path.exists():
            return
        with contextlib.suppress(OSError):
            try:
                with self._path.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, _BYTES)
            except OSError:
                self.release()
                raise

    def release(self) -> bool:
        """Delete the file; return whether there was one. It is created again when the index is opened."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
