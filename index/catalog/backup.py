"""Snapshots: a consistent copy of the whole catalogue in a folder, taken while others write; and the way back.

Promises: a snapshot is one moment of the catalogue, whole under its name or not there; restoring compares it with its
manifest and changes nothing before all of it is right.
Does not: copy models, or the searcher's rows (they are made again from the catalogue); take increments.

The folder: `catalog.db`, and `manifest.json` with its format, size and SHA-256, written last.
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
from typing import Any

from pydantic import ValidationError

from index.catalog.database import MIGRATIONS, connect, translated
from index.catalog.lock import FolderLock, check_exists
from index.errors import SnapshotError, TargetExistsError, translate_os_error
from index.records import SnapshotManifest
from model_store.durable import sha256_of, sync, write_atomic

FORMAT = 1
MANIFEST = "manifest.json"
CATALOGUE = "catalog.db"
_PAGES_AT_ONCE = 2048
_BLOCK = 1 << 20
Advance = Callable[[int, int], None]


def take_snapshot(home: Path, target: Path, *, advance: Advance | None = None) -> SnapshotManifest:
    """Copy the index of `home`, as it is now, into the new folder `target`; a running server goes on writing.

    advance: called with the pages copied and all pages.
    Raises IndexUnavailableError when there is no index, TargetExistsError, IndexFullError, IndexReadOnlyError,
    IndexCorruptError.
    """
    source = home / "index" / CATALOGUE
    check_exists(source.parent)
    if target.exists():
        raise TargetExistsError(target, "name a new folder for the snapshot")
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _files(target):
            staged.mkdir(parents=True)
        try:
            facts = _copy_catalogue(source, staged / CATALOGUE, advance)
            with _files(target):
                file = staged / CATALOGUE
                sync(file)
                facts |= {"format": FORMAT, "created": datetime.now(UTC)}
                facts |= {"size": file.stat().st_size, "sha256": sha256_of(file)}
                manifest = SnapshotManifest.model_validate(facts)
                write_atomic(staged / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
                staged.rename(target)
                sync(target.parent)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    except FileExistsError:  # by rename, when somebody was faster
        raise TargetExistsError(target, "name a new folder for the snapshot") from None
    return manifest


def restore_snapshot(snapshot: Path, home: Path, *, advance: Advance | None = None) -> SnapshotManifest:
    """Make `snapshot` the index of `home`, which must have none. advance: called with the bytes copied and all bytes.

    Raises SnapshotError when it is not whole or of another format, TargetExistsError, IndexLockedError,
    IndexFullError, IndexReadOnlyError; `home` has no index then, as before.
    """
    manifest = read_manifest(snapshot)
    folder = home / "index"
    _refuse_existing(folder)
    lock = FolderLock(folder)
    try:
        _refuse_existing(folder)
        temporary = folder / f".{CATALOGUE}.new"
        try:
            with _files(folder):
                _copy_checked(snapshot, manifest, temporary, advance)
                for leftover in folder.glob(f"{CATALOGUE}-*"):
                    leftover.unlink()
                temporary.rename(folder / CATALOGUE)
                sync(folder)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    finally:
        lock.close()
    return manifest


def read_manifest(snapshot: Path) -> SnapshotManifest:
    """Return what the snapshot says of itself. Raises SnapshotError."""
    if not snapshot.is_dir():
        raise SnapshotError(snapshot, "is no folder, so no snapshot")
    try:
        text = (snapshot / MANIFEST).read_bytes()
    except OSError as error:
        raise SnapshotError(
            snapshot, f"has no {MANIFEST} ({error.strerror}): it is no snapshot, or half copied"
        ) from None
    try:
        found = json.loads(text)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SnapshotError(snapshot, f"has a {MANIFEST} that cannot be read: it is half copied or damaged") from None
    if found != FORMAT:
        raise SnapshotError(snapshot, f"has format {found!r}, and this fc7 reads format {FORMAT}")
    try:
        manifest = SnapshotManifest.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SnapshotError(snapshot, f"has a {MANIFEST} whose {where} is not right") from None
    if manifest.schema_version > len(MIGRATIONS):
        reason = f"has a catalogue of format {manifest.schema_version}, and this fc7 knows {len(MIGRATIONS)}"
        raise SnapshotError(snapshot, reason)
    return manifest


def _copy_catalogue(source: Path, target: Path, advance: Advance | None) -> dict[str, Any]:
    """Copy one moment of a database, and return what the manifest says of it."""

    def copied(_status: int, remaining: int, total: int) -> None:
        if advance is not None:
            advance(total - remaining, total)

    with translated(source), closing(connect(source, read_only=True)) as reader:
        # The open transaction holds the moment: without it, every write would start the copy anew.
        reader.execute("BEGIN")
        facts = _facts(reader)
        with translated(target), closing(sqlite3.connect(target)) as writer:
            reader.backup(writer, pages=_PAGES_AT_ONCE, progress=copied, sleep=0)
            writer.execute("PRAGMA journal_mode = DELETE").fetchone()
    return facts


def _facts(connection: sqlite3.Connection) -> dict[str, Any]:
    def one(query: str) -> tuple[str | int, ...]:
        row: tuple[str | int, ...] = connection.execute(query).fetchone()
        return row

    active = connection.execute(
        "SELECT id, model, fingerprint FROM spaces WHERE id = (SELECT value FROM meta WHERE name = 'active_space')"
    ).fetchone()
    space, model, fingerprint = active or (0, "", "")
    return {
        "catalogue": one("SELECT value FROM meta WHERE name = 'identity'")[0],
        "schema_version": one("PRAGMA user_version")[0],
        "images": one("SELECT count(*) FROM images")[0],
        "vectors": int(connection.execute("SELECT count(*) FROM vectors WHERE space_id = ?", (space,)).fetchone()[0]),
        "model": model,
        "fingerprint": fingerprint,
    }


def _copy_checked(snapshot: Path, manifest: SnapshotManifest, target: Path, advance: Advance | None) -> None:
    """Copy the snapshot's catalogue to `target`, synced, or raise SnapshotError when it is not the manifest's."""
    digest = hashlib.sha256()
    done = 0
    source = snapshot / CATALOGUE
    if not source.is_file():
        raise SnapshotError(snapshot, f"has no {CATALOGUE}: it is half copied")
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(_BLOCK):
            digest.update(block)
            writing.write(block)
            done += len(block)
            if advance is not None:
                advance(done, manifest.size)
        writing.flush()
        os.fsync(writing.fileno())
    if done != manifest.size:
        raise SnapshotError(snapshot, f"has {done:,} of {manifest.size:,} bytes of {CATALOGUE}: it is half copied")
    if digest.hexdigest() != manifest.sha256:
        raise SnapshotError(snapshot, f"has a {CATALOGUE} that differs from its SHA-256: it is damaged")


def _refuse_existing(folder: Path) -> None:
    if (folder / CATALOGUE).exists():
        raise TargetExistsError(folder / CATALOGUE, "restore into another FC7_HOME, or move the index away")


@contextlib.contextmanager
def _files(path: Path) -> Iterator[None]:
    """Turn the errors of writing files into the index's."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise translate_os_error(error, path) from error


def snapshot_name() -> str:
    """Return a name for a snapshot that is taken now, in UTC."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)
