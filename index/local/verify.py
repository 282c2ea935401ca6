"""Verify an index or a snapshot against its checksums, and repair what can be repaired.

Guarantees: finds a flipped bit in a record, its metadata, picture or vector, in the database pages that hold them, in
the attributes that filters compare, in the files of the vectors, or in the write-ahead log of an index that is not
open. Names the image that it belongs to.
Out of scope: bytes that nothing reads (free pages), and complete files that were replaced by older ones.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.catalog import attributes
from index.catalog.backup import MANIFEST, Advance, read_manifest
from index.catalog.catalog import Catalog
from index.catalog.database import (
    CATALOG_FILE,
    MIGRATIONS,
    check_format,
    connect,
    record_checksum,
    transaction,
    translate,
)
from index.catalog.lock import FolderLock, check_exists, is_locked
from index.catalog.wal import first_damaged_frame
from index.errors import (
    ImageIndexError,
    IndexBusyError,
    IndexCorruptError,
    IndexFullError,
    IndexReadOnlyError,
    IndexUnreadableError,
    SnapshotError,
)
from index.fields import attributes as attributes_of
from index.local.vector_files import VectorFiles, remove
from index.records import DIMENSIONS, checksum
from model_store.durable import sha256_of

_RESTORE = "Restore a snapshot with fc7 index restore, or move the index away and index the images again."
_ADD_AGAIN = "Delete the image and add it again."
_REPAIR = "Run fc7 index verify --repair"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem and how to fix it. key: of the image that it concerns; None if it concerns no single image."""

    problem: str
    fix: str
    key: str | None = None


@dataclass(slots=True)
class Report:
    """How many images, pictures and vectors were verified, the problems found, and how many were repaired.

    outdated: how many images were prepared by an earlier version of the preparation, which is not damage.
    """

    images: int = 0
    pictures: int = 0
    vectors: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired: int = 0
    outdated: int = 0


def verify(folder: Path, *, repair: bool = False, advance: Advance = lambda *_: None) -> Report:
    """Verify every record of the index in `folder`, which is a home or a snapshot.

    repair: drop damaged pictures and vectors (`fc7 index reembed` computes vectors again), and store the attributes
    that filters compare again. Not possible for a snapshot, or while a server has the index open.
    advance: called with the number of images verified so far and the number of all images.
    Raises IndexUnavailableError if there is no index, IndexLockedError (for `repair`), IndexFormatError, and
    IndexUnreadableError or IndexBusyError if files cannot be read, which does not mean that they are damaged.
    """
    if (folder / MANIFEST).exists():
        return _verify_snapshot(folder, advance)
    index = folder / "index"
    check_exists(index)
    try:
        lock = FolderLock(index)
    except ImageIndexError:  # another process has it, or it is read-only
        if repair:
            raise
        return _verify_index(index, exclusive=not is_locked(index), repair=False, advance=advance)
    with closing(lock):
        return _verify_index(index, exclusive=True, repair=repair, advance=advance)


def _verify_snapshot(folder: Path, advance: Advance) -> Report:
    report = Report()
    try:
        manifest = read_manifest(folder)
        file = folder / CATALOG_FILE
        if file.stat().st_size != manifest.size or sha256_of(file) != manifest.sha256:
            raise SnapshotError(folder, f"has a {CATALOG_FILE} that does not match its {MANIFEST}")
    except FileNotFoundError:
        report.findings.append(Finding(f"{folder} has no {CATALOG_FILE}: it is incomplete", "Take another snapshot."))
    except OSError as error:
        raise IndexUnreadableError(folder, error.strerror or str(error)) from error
    except SnapshotError as error:
        report.findings.append(Finding(str(error), "Take another snapshot."))
    else:
        _CatalogCheck(folder / CATALOG_FILE, report, repair=False).run(advance)
    return report


def _verify_index(folder: Path, *, exclusive: bool, repair: bool, advance: Advance) -> Report:
    report = Report()
    log = folder / f"{CATALOG_FILE}-wal"
    if exclusive and log.exists() and (frame := first_damaged_frame(log)) is not None:
        problem = f"{log} is damaged in frame {frame}: changes committed there and later are lost"
        report.findings.append(Finding(problem, _RESTORE))
    _CatalogCheck(folder / CATALOG_FILE, report, repair=repair).run(advance)
    with contextlib.suppress(ImageIndexError), Catalog(folder / CATALOG_FILE, read_only=True) as catalog:
        report.outdated = catalog.outdated()
        for space in catalog.spaces():
            for path, damage in VectorFiles(folder, catalog.identity, space.fingerprint).find_damage():
                fix = "Delete the file while the index is not open: the next start reads the catalog instead."
                report.findings.append(Finding(f"{path} {damage}", fix))
                if repair:
                    remove(path)
                    report.repaired += 1
    return report


class _CatalogCheck:
    """Checks one catalog. If one part cannot be read, the other parts are still checked."""

    def __init__(self, path: Path, report: Report, *, repair: bool) -> None:
        self._path, self._report, self._repair = path, report, repair
        self._repairs: list[tuple[str, int]] = []
        self._attributes: list[tuple[int, str]] = []

    def run(self, advance: Advance) -> None:
        """Check everything, and add the problems to the report."""
        try:
            with closing(connect(self._path, read_only=not self._repair)) as connection:
                # Read damaged text as it is instead of failing: its checksum shows the damage.
                connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
                self._connection = connection
                found = check_format(connection, self._path)
                if found < len(MIGRATIONS):
                    if found:
                        problem = f"{self._path} has format {found}, which has no checksums"
                        self._find(problem, "Start fc7 serve once: it updates the catalog's format.")
                    else:
                        self._find(f"{self._path} has no format number", _RESTORE)
                    return
                for part in (self._pages, self._spaces, lambda: self._images(advance), self._vectors):
                    try:
                        part()
                    except sqlite3.Error as error:
                        self._check_damage(error)
                        self._find(f"{self._path} cannot be read completely ({error})", _RESTORE)
                if self._repair:
                    self._apply_repairs()
        except IndexCorruptError as error:
            self._find(f"{self._path} cannot be read ({error.reason})", _RESTORE)
        except sqlite3.Error as error:
            self._check_damage(error)
            self._find(f"{self._path} cannot be read ({error})", _RESTORE)

    def _check_damage(self, error: sqlite3.Error) -> None:
        """Raise the index's error unless the cause is damage: an unreadable or busy file may be intact."""
        translated = translate(error, self._path)
        if isinstance(translated, IndexUnreadableError | IndexBusyError | IndexReadOnlyError | IndexFullError):
            raise translated from error

    def _pages(self) -> None:
        for (line,) in self._rows("PRAGMA integrity_check(20)"):
            if line != "ok":
                self._find(f"{self._path}: {line}", _RESTORE)
        for table, row, *_ in self._rows("PRAGMA foreign_key_check"):
            self._find(f"{self._path}: row {row} of {table} belongs to nothing that exists", _RESTORE)
        for table, highest in self._rows("SELECT name, seq FROM sqlite_sequence"):
            if table in ("images", "vectors", "spaces"):
                [(used,)] = self._rows(f"SELECT coalesce(max(id), 0) FROM {table}")  # noqa: S608
                if not isinstance(highest, int) or highest < used:
                    self._find(f"{self._path}: the id counter of {table} is too low", _RESTORE)

    def _spaces(self) -> None:
        for fingerprint, model, crc in self._rows("SELECT fingerprint, model, crc FROM spaces"):
            if _checksum(fingerprint, model) != crc:
                self._find(f"the record of the model {model!a} differs from its checksum", _RESTORE)
        active = "SELECT 1 FROM meta JOIN spaces s ON s.id = value WHERE name = 'active_space'"
        if self._rows("SELECT 1 FROM vectors LIMIT 1") and not self._rows(active):
            self._find(f"{self._path} does not say which model's vectors are searched", _RESTORE)

    def _images(self, advance: Advance) -> None:
        [(total,)] = self._rows("SELECT count(*) FROM images")
        rows = self._connection.execute(
            """SELECT i.id, i.crc, p.crc, p.jpeg, i.key, i.sha256, i.size, i.width, i.height, i.metadata, i.added,
                      i.updated FROM images i LEFT JOIN pictures p ON p.image_id = i.id ORDER BY i.id"""
        )
        for number, crc, picture_crc, jpeg, *record in rows:
            self._report.images += 1
            key = str(record[0])
            if _checksum(*record) != crc:
                self._find("the record differs from its checksum", _ADD_AGAIN, key)
            elif not self._filters_agree(number, record[5]):
                self._find("the attributes that filters compare differ from the metadata", f"{_REPAIR}.", key)
                self._repairs.append(("DELETE FROM attributes WHERE image_id = ?", number))
                self._attributes.append((number, record[5]))
            if jpeg is not None:
                self._report.pictures += 1
                if _checksum(jpeg) != picture_crc:
                    self._find("the picture differs from its checksum", f"{_REPAIR} to drop it. {_ADD_AGAIN}", key)
                    self._repairs.append(("DELETE FROM pictures WHERE image_id = ?", number))
            advance(self._report.images, total)

    def _vectors(self) -> None:
        rows = self._connection.execute(
            "SELECT v.id, v.crc, v.vector, i.key FROM vectors v LEFT JOIN images i ON i.id = v.image_id ORDER BY v.id"
        )
        for number, crc, vector, key in rows:
            self._report.vectors += 1
            if not isinstance(vector, bytes) or len(vector) != 2 * DIMENSIONS or checksum(vector) != crc:
                fix = f"{_REPAIR} to drop it, then fc7 index reembed to compute it again from the picture."
                self._find("the vector differs from its checksum", fix, str(key))
                self._repairs.append(("DELETE FROM vectors WHERE id = ?", number))

    def _filters_agree(self, image: int, metadata: str) -> bool:
        try:
            return attributes.load(self._connection, image) == attributes_of(json.loads(metadata))
        except ValueError:  # the stored type is unknown
            return False

    def _apply_repairs(self) -> None:
        with transaction(self._connection):
            for statement, number in self._repairs:
                self._connection.execute(statement, (number,))
            for number, metadata in self._attributes:
                attributes.store(self._connection, number, metadata)
        self._report.repaired += len(self._repairs)

    def _find(self, problem: str, fix: str, key: str | None = None) -> None:
        self._report.findings.append(Finding(problem, fix, key))

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()


def _checksum(*values: Any) -> int:
    """Return the checksum of the values of a record; text counts as the bytes that were read."""
    return record_checksum(*(v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values))
