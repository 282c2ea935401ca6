"""Crash-safe file writes (temporary file, fsync, rename), hashes and file locks.

Guarantees: once `atomic_file` or `write_atomic` returns, the content is on disk; a reader sees the old content or the
new content, never a mixture.
Out of scope: two writers of one file. Without a lock of their own (`locked`), the last one wins.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

_FICLONE = 0x40049409  # Linux: share the blocks of another file until one of them is written


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush `folder` and everything in it to disk. Raises OSError."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the copies share their space on disk where the file system can do that (XFS, Btrfs). Raises OSError.

    They are not hard links, because the package onnx refuses weights that have several.
    """
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


@contextmanager
def atomic_file(path: Path, *, replace: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write to a temporary file, which is synced and replaces `path` at the end of the block.

    After an error or a kill, `path` has its old content or the complete new content. The yielded file is readable and
    seekable. replace: if False, an existing `path` is kept and FileExistsError is raised. mode: permissions of the file
    before the umask. Raises OSError.
    """
    if not replace and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x+b", opener=partial(os.open, mode=mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` with `data`, see `atomic_file`. Raises OSError."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold the advisory lock on the file `path`, which is created if missing. The kernel frees it if the process dies.

    Yields whether the lock is held. With `wait` that is always True; otherwise it is False if another process holds the
    lock. Raises OSError.
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
