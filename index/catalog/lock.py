"""The lock of an index folder: only one process at a time may write to an index.

Guarantees: the kernel releases the lock when its process ends, even after a kill; the error names the other process.
Out of scope: file systems without `flock`, and programs that ignore this advisory lock.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from index.catalog.database import CATALOG_FILE
from index.errors import IndexLockedError, IndexUnavailableError, translate_os_error
from model_store.durable import locked


class FolderLock:
    """The lock of an index folder, held from construction until `close`. The file contains the process id."""

    def __init__(self, folder: Path) -> None:
        """Acquire the lock; create a missing folder. Raises IndexLockedError, IndexReadOnlyError, IndexFullError."""
        file = folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                if not stack.enter_context(locked(file, wait=False)):
                    holder = file.read_text()
                    raise IndexLockedError(folder, int(holder) if holder.isdigit() else None)
                file.write_text(str(os.getpid()))
                self._held = stack.pop_all()
        except OSError as error:
            raise translate_os_error(error, folder) from error

    def close(self) -> None:
        """Release the lock."""
        self._held.close()


def check_exists(folder: Path) -> None:
    """Raise IndexUnavailableError unless `folder` contains a catalog."""
    if not (folder / CATALOG_FILE).exists():
        raise IndexUnavailableError(folder, "it does not exist yet; create it with fc7 index build DIR")
