"""Snapshots: take a consistent copy of the catalog while others write, list, verify, delete and restore them.

Guarantees: a snapshot shows the catalog at one moment, has no free pages, and is written completely or not at all. A
restore compares the snapshot with its manifest and changes nothing unless they agree. A snapshot that is being written
or deleted is not listed.
Out of scope: models; the files of the vectors, which are derived from the catalog; incremental snapshots.
References: SQLite's documentation of `VACUUM INTO`.

A snapshot is a folder with `catalog.db` and with `manifest.json`, which has its format, size and SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from index.catalog.database import CATALOG_FILE, MIGRATIONS, connect, translated
from index.catalog.lock import FolderLock, check_exists
from index.catalog.spaces import active_space
from index.errors import (
    IndexUnreadableError,
    SnapshotError,
    SnapshotNotFoundError,
    TargetExistsError,
    translate_os_error,
)
from index.records import SnapshotManifest
from model_store.durable import atomic_file, sha256_of, sync, write_atomic

FORMAT = 1
MANIFEST = "manifest.json"
FOLDER = "snapshots"
"""The folder of the snapshots in a home."""
_STEPS_PER_CALL = 20_000  # instructions of SQLite between two reports of the progress
_BLOCK = 1 << 20
Advance = Callable[[int, int], None]


def take_snapshot(home: Path, target: Path, *, advance: Advance = lambda *_: None) -> SnapshotManifest:
    """Copy the index of `home` into the new folder `target`; a running server can write meanwhile.

    advance: called with the numbers of bytes copied and to copy.
    Raises IndexUnavailableError if there is no index, TargetExistsError, IndexFullError, IndexReadOnlyError,
    IndexCorruptError.
    """
    source = home / "index" / CATALOG_FILE
    check_exists(source.parent)
    exists = TargetExistsError(target, "Choose the name of a new folder")
    if target.exists():
        raise exists
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _files(target):
            staged.mkdir(parents=True)
        file = staged / CATALOG_FILE
        facts = _copy_database(source, file, advance)
        with _files(target):
            sync(file)
            facts |= {"format": FORMAT, "created": datetime.now(UTC)}
            facts |= {"size": file.stat().st_size, "sha256": sha256_of(file)}
            manifest = SnapshotManifest.model_validate(facts)
            write_atomic(staged / MANIFEST, manifest.model_dump_json(indent=2, by_alias=True).encode() + b"\n")
            staged.rename(target)
            sync(target.parent)
    except FileExistsError:  # raised by rename if another process created the folder meanwhile
        raise exists from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # still exists only if something failed
    return manifest


def restore_snapshot(snapshot: Path, home: Path, *, advance: Advance = lambda *_: None) -> SnapshotManifest:
    """Make `snapshot` the index of `home`, which must not have one yet.

    advance: called with the numbers of bytes copied and to copy. Raises SnapshotError if the snapshot is incomplete,
    damaged or of another format, TargetExistsError, IndexLockedError, IndexFullError, IndexReadOnlyError; then `home`
    still has no index.
    """
    manifest = read_manifest(snapshot)
    folder = home / "index"
    catalog = folder / CATALOG_FILE
    _require_absent(catalog)
    with closing(FolderLock(folder)):
        _require_absent(catalog)  # another process may have created it before the lock was acquired
        with _files(folder), atomic_file(catalog) as file:
            _copy_checked(snapshot, manifest, file, advance)
            # SQLite must not apply the write-ahead log of a deleted catalog to this one.
            for leftover in folder.glob(f"{CATALOG_FILE}-*"):
                leftover.unlink()
    return manifest


def list_snapshots(folder: Path) -> list[tuple[Path, SnapshotManifest]]:
    """Return the complete snapshots in `folder` that this fc7 can read, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_complete(path):
            with contextlib.suppress(SnapshotError):
                found.append((path, read_manifest(path)))
    return sorted(found, key=lambda each: each[1].created)


def find_snapshot(folder: Path, name: str) -> Path:
    """Return the snapshot of this name in `folder`, also if this fc7 cannot read it. Raises SnapshotNotFoundError."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == name and _is_complete(path):
            return path
    raise SnapshotNotFoundError(name)


def verify_snapshot(snapshot: Path, *, advance: Advance = lambda *_: None) -> SnapshotManifest:
    """Compare a snapshot with its manifest, and return that. Raises SnapshotError, IndexUnreadableError.

    advance: called with the numbers of bytes read and to read.
    """
    manifest = read_manifest(snapshot)
    with Path(os.devnull).open("wb") as nowhere:
        _copy_checked(snapshot, manifest, nowhere, advance)
    return manifest


def remove_snapshot(snapshot: Path) -> None:
    """Delete a snapshot. Raises IndexFullError, IndexReadOnlyError."""
    with _files(snapshot):
        # Hidden first: a deletion that is interrupted does not leave half a snapshot.
        hidden = snapshot.rename(snapshot.with_name(f".{snapshot.name}.{secrets.token_hex(4)}"))
        shutil.rmtree(hidden)


def has_usable_name(path: Path) -> bool:
    """Return whether a folder may be a complete copy: not hidden (being written), and with a name in UTF-8.

    No response could contain another name.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return not path.name.startswith(".")


def _is_complete(path: Path) -> bool:
    """Return whether a folder is a complete snapshot. While it is being written, its name starts with a dot."""
    return has_usable_name(path) and (path / MANIFEST).is_file()


def read_manifest(snapshot: Path) -> SnapshotManifest:
    """Return the manifest of a snapshot. Raises SnapshotError."""
    if not snapshot.is_dir():
        raise SnapshotError(snapshot, "is not a folder")
    try:
        text = (snapshot / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise SnapshotError(snapshot, f"has no {MANIFEST}: it is incomplete or not a snapshot") from None
    except OSError as error:
        raise IndexUnreadableError(snapshot, f"{MANIFEST}: {error.strerror}") from error
    try:
        found = json.loads(text)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SnapshotError(snapshot, f"has an invalid {MANIFEST}: it is incomplete or damaged") from None
    if found != FORMAT:
        raise SnapshotError(snapshot, f"has format {found!r}, but this fc7 reads format {FORMAT}")
    try:
        manifest = SnapshotManifest.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SnapshotError(snapshot, f"has an invalid value for {where} in {MANIFEST}") from None
    if manifest.schema_version > len(MIGRATIONS):
        reason = f"has a catalog of format {manifest.schema_version}, but this fc7 supports {len(MIGRATIONS)}"
        raise SnapshotError(snapshot, reason)
    return manifest


def _copy_database(source: Path, target: Path, advance: Advance) -> dict[str, Any]:
    """Copy a database as of one moment; return the facts about it that the manifest needs."""
    with translated(source), closing(connect(source, read_only=True)) as reader:
        [total] = reader.execute(
            "SELECT (page_count - freelist_count) * page_size "
            "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()

        def report() -> int:
            with contextlib.suppress(OSError):  # SQLite has not created the file yet
                advance(min(target.stat().st_size, total), total)
            return 0

        reader.set_progress_handler(report, _STEPS_PER_CALL)
        # Reads in one transaction, and unlike a copy of the pages leaves out the free ones.
        reader.execute("VACUUM INTO ?", (str(target),))
    advance(total, total)
    with translated(target), closing(sqlite3.connect(target)) as copy:
        return _facts(copy)


def _facts(connection: sqlite3.Connection) -> dict[str, Any]:
    space, model, fingerprint = active_space(connection)
    identity, schema_version, images, vectors = connection.execute(
        """SELECT (SELECT value FROM meta WHERE name = 'identity'), (SELECT user_version FROM pragma_user_version),
                  (SELECT count(*) FROM images), (SELECT count(*) FROM vectors WHERE space_id = ?)""",
        (space,),
    ).fetchone()
    facts = {"catalogue": identity, "schema_version": schema_version, "images": images, "vectors": vectors}
    return facts | {"model": model, "fingerprint": fingerprint}


def _copy_checked(snapshot: Path, manifest: SnapshotManifest, target: BinaryIO, advance: Advance) -> None:
    """Copy the snapshot's catalog to `target`. Raises SnapshotError if size or SHA-256 differ from the manifest."""
    digest = hashlib.sha256()
    done = 0
    source = snapshot / CATALOG_FILE
    if not source.is_file():
        raise SnapshotError(snapshot, f"has no {CATALOG_FILE}: it is incomplete")
    with _open(source) as file:
        while block := _read(file, source):
            digest.update(block)
            target.write(block)
            done += len(block)
            advance(done, manifest.size)
    if done != manifest.size:
        raise SnapshotError(snapshot, f"has {done:,} of {manifest.size:,} bytes of {CATALOG_FILE}: it is incomplete")
    if digest.hexdigest() != manifest.sha256:
        raise SnapshotError(snapshot, f"has a {CATALOG_FILE} whose SHA-256 differs from the manifest: it is damaged")


def _open(path: Path) -> BinaryIO:
    """Open a file of a snapshot. Raises IndexUnreadableError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise IndexUnreadableError(path, error.strerror or str(error)) from error


def _read(file: BinaryIO, path: Path) -> bytes:
    """Read the next block. Raises IndexUnreadableError."""
    try:
        return file.read(_BLOCK)
    except OSError as error:
        raise IndexUnreadableError(path, error.strerror or str(error)) from error


def _require_absent(catalog: Path) -> None:
    if catalog.exists():
        raise TargetExistsError(catalog, "Restore into another FC7_HOME, or move the index away")


@contextlib.contextmanager
def _files(path: Path) -> Iterator[None]:
    """Translate OSErrors raised in the block, except FileExistsError, to errors of the index."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise translate_os_error(error, path) from error


def snapshot_name() -> str:
    """Return a new name for a snapshot: the current time in UTC and a random suffix."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)
