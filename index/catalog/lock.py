"""One process at a time writes to an index: an advisory lock on a file in its folder.

Promises: the lock goes with its process, however that ends; who is refused is told which process has it.
Does not: hold on file systems without `flock`, or against a program that does not ask.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from index.errors import (
    IndexLockedError,
    IndexUnavailableError,
    translate_os_error,
)


class FolderLock:
    """The lock on an index's folder, held from construction until `close`."""

    def __init__(self, folder: Path) -> None:
        """Take it; the folder is made when missing. Raises IndexLockedError, IndexReadOnlyError, IndexFullError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise translate_os_error(error, folder) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            holder = os.pread(self._descriptor, 32, 0)
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise IndexLockedError(folder, int(holder) if holder.isdigit() else None) from None
            raise translate_os_error(error, folder) from error

    def close(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


def check_exists(folder: Path) -> None:
    """Raise IndexUnavailableError unless `folder` has a catalogue."""
    if not (folder / "catalog.db").exists():
        raise IndexUnavailableError(folder, "there is none yet, make one with fc7 index build DIR")
