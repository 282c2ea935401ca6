"""Is everything in an index as it was written? And what to do about each thing that is not.

Promises: a flipped bit in a record, its metadata, picture or vector, in the pages that hold them, in what filters
compare, in the write-ahead log of an index that nobody has open, or in a snapshot, is found; whose it is, is said.
Does not: look into bytes that nothing reads (free pages), or see that a whole file was replaced by an older one.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.catalog import attributes
from index.catalog.backup import MANIFEST, read_manifest
from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE, MIGRATIONS, connect, record_checksum, transaction
from index.catalog.lock import FolderLock, check_exists
from index.catalog.wal import first_damaged_frame
from index.errors import ImageIndexError, IndexFormatError, SnapshotError
from index.fields import attributes as attributes_of
from index.local.vector_cache import damage
from index.records import DIMENSIONS, checksum
from model_store.durable import sha256_of

ROWS = "vectors.snapshot"
_RESTORE = "restore a snapshot with fc7 index restore, or move the index away and index the images again"
_AGAIN = "delete the image and add it again"
_REPAIR = "fc7 index verify --repair"
Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written. key: of its image, None where it is not one image's."""

    problem: str
    mend: str
    key: str | None = None


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found; `repaired` counts what was mended."""

    images: int = 0
    pictures: int = 0
    vectors: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired: int = 0


def verify(folder: Path, *, repair: bool = False, advance: Advance | None = None) -> Report:
    """Look at every record of the index in `folder`, which is a home or a snapshot.

    repair: drop damaged pictures and vectors (`fc7 index reembed` makes vectors anew), and make what filters compare
    anew; for a home that no server has open. advance: called with the images looked at and all images.
    Raises IndexUnavailableError when there is nothing to look at, IndexLockedError (to repair), IndexFormatError.
    """
    if (folder / MANIFEST).exists():
        return _verify_snapshot(folder, advance)
    index = folder / "index"
    check_exists(index)
    with contextlib.ExitStack() as stack:
        alone = True
        try:
            stack.enter_context(closing(FolderLock(index)))
        except ImageIndexError:
            if repair:
                raise
            alone = False
        return _verify_index(index, alone=alone, repair=repair, advance=advance)


def _verify_snapshot(folder: Path, advance: Advance | None) -> Report:
    report = Report()
    try:
        manifest = read_manifest(folder)
        file = folder / CATALOG_FILE
        if file.stat().st_size != manifest.size or sha256_of(file) != manifest.sha256:
            raise SnapshotError(folder, f"has a {CATALOG_FILE} that is not the one of its {MANIFEST}")
    except (SnapshotError, OSError) as error:
        report.findings.append(Finding(str(error), "take another snapshot"))
    else:
        _Look(folder / CATALOG_FILE, report, repair=False).at_everything(advance)
    return report


def _verify_index(folder: Path, *, alone: bool, repair: bool, advance: Advance | None) -> Report:
    report = Report()
    log, rows = folder / f"{CATALOG_FILE}-wal", folder / ROWS
    if alone and log.exists() and (frame := first_damaged_frame(log)) is not None:
        problem = f"{log} is damaged in frame {frame}: what was committed there and later is lost"
        report.findings.append(Finding(problem, _RESTORE))
    _Look(folder / CATALOG_FILE, report, repair=repair).at_everything(advance)
    with contextlib.suppress(ImageIndexError), Catalog(folder / CATALOG_FILE, read_only=True) as catalog:
        for space in catalog.spaces():
            if space.active and (found := damage(rows, catalog, space.id, space.fingerprint)):
                report.findings.append(
                    Finding(f"{rows} {found}", "delete it: the next start makes it again from the catalogue")
                )
                if repair:
                    rows.unlink()
                    report.repaired += 1
    return report


class _Look:
    """One look at a catalogue. Every part is looked at, also when another cannot be read."""

    def __init__(self, path: Path, report: Report, *, repair: bool) -> None:
        self._path, self._report, self._repair = path, report, repair
        self._mends: list[tuple[str, int]] = []
        self._stores: list[tuple[int, str]] = []

    def at_everything(self, advance: Advance | None) -> None:
        """Fill the report."""
        try:
            with closing(connect(self._path, read_only=not self._repair)) as connection:
                # Damaged texts must arrive, whatever their bytes: their checksum is what tells.
                connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
                self._connection = connection
                found = int(self._rows("PRAGMA user_version")[0][0])
                if found > len(MIGRATIONS):
                    raise IndexFormatError(self._path, found, len(MIGRATIONS))
                if found < len(MIGRATIONS):
                    problem = f"{self._path} has format {found}, without checksums" if found else "has no format"
                    self._find(
                        problem, "start fc7 serve once: it brings the catalogue up to date" if found else _RESTORE
                    )
                    return
                for part in (self._pages, self._spaces, lambda: self._images(advance), self._vectors):
                    try:
                        part()
                    except sqlite3.Error as error:
                        self._find(f"{self._path} cannot be read everywhere ({error})", _RESTORE)
                if self._repair:
                    self._mend()
        except IndexFormatError:
            raise
        except (ImageIndexError, sqlite3.Error) as error:
            self._find(f"{self._path} cannot be read ({error})", _RESTORE)

    def _pages(self) -> None:
        for (line,) in self._rows("PRAGMA integrity_check(20)"):
            if line != "ok":
                self._find(f"{self._path}: {line}", _RESTORE)
        for table, row, *_ in self._rows("PRAGMA foreign_key_check"):
            self._find(f"{self._path}: row {row} of {table} belongs to nothing", _RESTORE)
        for table, highest in self._rows("SELECT name, seq FROM sqlite_sequence"):
            if table in ("images", "vectors", "spaces"):
                [(used,)] = self._rows(f"SELECT coalesce(max(id), 0) FROM {table}")  # noqa: S608
                if not isinstance(highest, int) or highest < used:
                    self._find(f"{self._path}: the count of {table} is behind", _RESTORE)

    def _spaces(self) -> None:
        for fingerprint, model, crc in self._rows("SELECT fingerprint, model, crc FROM spaces"):
            if _checksum(fingerprint, model) != crc:
                self._find(f"the record of the model {model!a} differs from its checksum", _RESTORE)
        active = "SELECT 1 FROM meta JOIN spaces s ON s.id = value WHERE name = 'active_space'"
        if self._rows("SELECT 1 FROM vectors LIMIT 1") and not self._rows(active):
            self._find(f"{self._path} does not say which model's vectors are searched", _RESTORE)

    def _images(self, advance: Advance | None) -> None:
        [(total,)] = self._rows("SELECT count(*) FROM images")
        rows = self._connection.execute(
            """SELECT i.id, i.crc, p.crc, p.jpeg, i.key, i.sha256, i.size, i.width, i.height, i.metadata, i.added,
                      i.updated FROM images i LEFT JOIN pictures p ON p.image_id = i.id ORDER BY i.id"""
        )
        for number, crc, picture_crc, jpeg, *record in rows:
            self._report.images += 1
            key = str(record[0])
            if _checksum(*record) != crc:
                self._find("the record differs from its checksum", _AGAIN, key)
            elif not self._filters_agree(number, record[5]):
                self._find("what filters compare is not what is in the metadata", _REPAIR, key)
                self._mends.append(("DELETE FROM attributes WHERE image_id = ?", number))
                self._stores.append((number, record[5]))
            if jpeg is not None:
                self._report.pictures += 1
                if _checksum(jpeg) != picture_crc:
                    self._find("the picture differs from its checksum", f"{_REPAIR} drops it; then {_AGAIN}", key)
                    self._mends.append(("DELETE FROM pictures WHERE image_id = ?", number))
            if advance is not None:
                advance(self._report.images, total)

    def _vectors(self) -> None:
        rows = self._connection.execute(
            "SELECT v.id, v.crc, v.vector, i.key FROM vectors v LEFT JOIN images i ON i.id = v.image_id ORDER BY v.id"
        )
        for number, crc, vector, key in rows:
            self._report.vectors += 1
            if not isinstance(vector, bytes) or len(vector) != 2 * DIMENSIONS or checksum(vector) != crc:
                mend = f"{_REPAIR} drops it; then fc7 index reembed makes it again from the picture"
                self._find("the vector differs from its checksum", mend, str(key))
                self._mends.append(("DELETE FROM vectors WHERE id = ?", number))

    def _filters_agree(self, image: int, metadata: str) -> bool:
        try:
            return attributes.load(self._connection, image) == attributes_of(json.loads(metadata))
        except ValueError:  # a type that is none
            return False

    def _mend(self) -> None:
        with transaction(self._connection):
            for statement, number in self._mends:
                self._connection.execute(statement, (number,))
            for number, metadata in self._stores:
                attributes.store(self._connection, number, metadata)
        self._report.repaired += len(self._mends)

    def _find(self, problem: str, mend: str, key: str | None = None) -> None:
        self._report.findings.append(Finding(problem, mend, key))

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()


def _checksum(*values: Any) -> int:
    """Return the checksum of what was read: texts as the bytes that they were."""
    return record_checksum(*(v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values))
