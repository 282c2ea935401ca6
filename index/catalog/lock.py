"""The lock of an index folder: only one process at a time may write to an index.

Guarantees: the kernel releases the lock when its process ends, even after a kill; the error names the other process.
Out of scope: file systems without `flock`, and programs that ignore this advisory lock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from index.catalog.database import CATALOG_FILE
from index.errors import IndexLockedError, IndexUnavailableError, IndexUnreadableError, translate_os_error


class FolderLock:
    """The lock of an index folder, held from construction until `close`. The file contains the process id."""

    def __init__(self, folder: Path) -> None:
        """Acquire the lock; create a missing folder. Raises IndexLockedError, IndexReadOnlyError, IndexFullError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A plain descriptor is not closed by garbage collection, so a leaked index keeps its lock.
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
        """Release the lock."""
        os.close(self._descriptor)


def check_exists(folder: Path) -> None:
    """Raise IndexUnavailableError unless `folder` contains a catalog, IndexUnreadableError if it cannot be read."""
    try:
        exists = (folder / CATALOG_FILE).exists()
    except OSError as error:
        raise IndexUnreadableError(folder, error.strerror or str(error)) from error
    if not exists:
        raise IndexUnavailableError(folder, "it does not exist yet; create it with fc7 index build DIR")


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the lock. Needs no write permission."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # no process can have locked it, or this user cannot know
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
