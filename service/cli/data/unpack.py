"""Data sets in archives: unpack a .zip, .tar, .tar.gz or .tar.bz2 file once, into FC7_HOME/data.

Guarantees: only image files and tables are written, below the target folder and under escaped names; everything else is
reported. An archive that was unpacked is not unpacked again until it changes. A folder is complete or absent.
Out of scope: archives inside archives; deleting what was unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from pathlib import Path

from index.bulk.archive import ArchiveEntry, ArchiveLimits, SkippedEntryError, read_entries
from index.bulk.sources import MAX_FILE_BYTES
from index.errors import DamagedArchiveError, ImageArchiveError
from model_store.errors import DatasetError
from model_store.image_files import SkipKind, Skipped, is_hidden
from model_store.table_file import is_table
from service.cli import console

_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2")
_MAX_ENTRIES = 10_000_000
_BAD_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_FREE_BYTES = 64_000_000  # of the disk, left for other files


def is_archive(path: Path) -> bool:
    """Return whether `path` is a file with the name of an archive."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def data_folder(source: Path, home: Path) -> Path:
    """Return `source` itself, or the folder that the archive `source` is unpacked to. `~` stands for the home folder.

    Raises DatasetError if the disk is full or the archive is damaged or not supported, OSError.
    """
    source = source.expanduser()
    if not is_archive(source):
        return source
    state = source.stat()
    identity = hashlib.sha256(f"{source.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = home / "data" / f"{source.name.partition('.')[0]}-{identity}"
    if target.is_dir():
        console.say(f"{source} was unpacked before, to {target}.")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        written = _unpack(source, staged)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    console.say(f"{written:,} files of {source} were unpacked to {target}.")
    return target


def _unpack(archive: Path, folder: Path) -> int:
    """Write the images and tables of the archive into `folder`, and return their number."""
    limits = ArchiveLimits(_MAX_ENTRIES, MAX_FILE_BYTES, max(shutil.disk_usage(folder).free - _FREE_BYTES, 0))
    written, left = 0, limits.bytes
    skipped: list[Skipped] = []
    try:
        for entry in read_entries(archive, limits):
            try:
                if entry.skip is not None and not _is_table(entry):
                    raise entry.skip
                left -= entry.size
                if left < 0:
                    raise DatasetError(f"The disk is too full to unpack {archive} to {folder.parent}. Free some space.")
                _write(folder / entry.name, entry.read())
                written += 1
            except SkippedEntryError as error:
                skipped.append(Skipped(entry.name, error.reason, error.kind))
    except DamagedArchiveError as error:
        raise DatasetError(f"{archive}: {error} Copy the archive again.") from error
    except ImageArchiveError as error:
        raise DatasetError(
            f"The archive {archive} {error.reason}. Copy it again, or unpack it yourself and give the folder."
        ) from error
    console.say_skipped(skipped)
    if not written:
        raise DatasetError(f"{archive} contains no images that can be used. It must contain class folders or a table.")
    return written


def _is_table(entry: ArchiveEntry) -> bool:
    """Return whether an entry that is not an image is a table, such as metadata.jsonl."""
    if entry.skip is None or entry.skip.kind not in (SkipKind.NOT_AN_IMAGE, SkipKind.HIDDEN):
        return False
    return is_table(Path(entry.name)) and not any(is_hidden(part) for part in entry.name.split("/"))


def _write(path: Path, content: bytes) -> None:
    # Names are escaped and have no `..`, but can be too long for the file system.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        if error.errno not in _BAD_NAME:
            raise
        raise SkippedEntryError(SkipKind.INVALID_KEY, f"The file cannot be created: {error.strerror}.") from error
