"""Files that are whole or absent after a kill at any line: hash, sync, and replace by rename.

Promises: what `write_atomic` returned from is on disk, and a reader sees the old content or the new one, never a
mixture.
Does not: lock. Two writers of one file need a lock of their own (`locked`), or the later one wins.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder (its list of names) to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to disk. Raises OSError."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a kill leaves the old content or the new, whole. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold the advisory lock of the file `path` (made if missing) for the block; the kernel frees it when a process
    dies.

    Yields whether the lock is held: always True with `wait`, else False when another one holds it. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
