"""Optimize an index that no other process has open: learn the short codes again, and return all free disk space.

A server does the same in the background, a little at a time, except for a catalog of an earlier version, which shrinks
only here.
Guarantees: if it is interrupted, the index is as before or optimized in part, and complete.
Out of scope: indexes on Milvus, which optimizes its own storage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from index.catalog.catalog import Catalog
from index.catalog.database import AUTO_VACUUM, CATALOG_FILE, connect, migrate, translated
from index.catalog.lock import FolderLock, check_exists
from index.errors import IndexFullError
from index.local.index import LocalImageIndex
from index.local.vector_files import bytes_on_disk, remove_unused_files
from index.records import FastCode, IndexOptions


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What was done. Sizes on disk are in bytes. fast: the short codes before and after; None if there are none."""

    bytes_before: int
    bytes_after: int
    fast_before: FastCode | None
    fast_after: FastCode | None


def optimize(home: Path, *, fast_from: int | None, step: Callable[[str], None] = lambda _: None) -> OptimizeReport:
    """Optimize the index of `home`. fast_from: as in IndexOptions. step: called with the name of each step.

    Raises IndexUnavailableError if there is no index, IndexLockedError, IndexFullError, IndexReadOnlyError,
    IndexCorruptError, IndexFormatError.
    """
    folder = home / "index"
    check_exists(folder)
    before = bytes_on_disk(folder)
    step("returning free space")
    with closing(FolderLock(folder)):
        _vacuum(folder)
        with Catalog(folder / CATALOG_FILE, read_only=True) as catalog:
            spaces = catalog.spaces()
        remove_unused_files(folder, [space.fingerprint for space in spaces])
    active = next((space for space in spaces if space.active), None)
    if active is None or not active.vectors:
        return OptimizeReport(before, bytes_on_disk(folder), None, None)
    step("learning the short codes")
    options = IndexOptions(active.fingerprint, active.model)
    with LocalImageIndex.open(home, replace(options, fast_from=fast_from)) as index:
        fast_before = index.stats().fast
        index.optimize()
        fast_after = index.stats().fast
    return OptimizeReport(before, bytes_on_disk(folder), fast_before, fast_after)


def _vacuum(folder: Path) -> None:
    """Rewrite the catalog without free pages, so that it can shrink by itself from now on."""
    path = folder / CATALOG_FILE
    # SQLite writes the new database to a temporary file, and then through its log.
    needed, free = 2 * path.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise IndexFullError(folder, f"rewriting the catalog needs {needed:,} bytes, but {free:,} are free")
    earlier = os.environ.get("SQLITE_TMPDIR")
    os.environ["SQLITE_TMPDIR"] = str(folder)  # the default, /tmp, is often small
    try:
        with closing(connect(path)) as connection:
            migrate(connection, path)
            with translated(path):
                connection.execute(AUTO_VACUUM)
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        if earlier is None:
            del os.environ["SQLITE_TMPDIR"]
        else:
            os.environ["SQLITE_TMPDIR"] = earlier
