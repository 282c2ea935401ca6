"""Read images from an untrusted .zip, .tar, .tar.gz or .tar.bz2 archive.

Guarantees: nothing is unpacked to disk, and no entry larger than the limit is read into memory. `count_images` rejects
a file that is not such an archive, or has too many entries or unpacked bytes. Every other problem costs only the entry
that has it: it is reported with the reason. If a tar file is cut off or its compression is damaged, all entries before
that place are read, and the error names it.
Out of scope: archives inside archives, zip files in several parts, .tar.xz, .tar.zst, .7z and .rar.
References: APPNOTE 6.3.10 (zip), POSIX.1-2017 pax (tar).
"""

from __future__ import annotations

import bz2
import gzip
import re
import tarfile
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from index.bulk.metadata import MAX_TABLE_BYTES, METADATA_FILE, ImageMetadata, Values, archive_rows
from index.bulk.tar_file import TAR_DAMAGE, BadHeader, BoundedReader, Tar, TarHeader, read_headers
from index.bulk.zip_file import ENCRYPTED_FLAGS, METHODS, DamagedEntryError, ZipEntry, ZipReader, has_directory
from index.errors import DamagedArchiveError, ImageArchiveError
from model_store.errors import TableError
from model_store.image_files import SNIFFED_BYTES, SkipKind, escape_name, is_hidden, kind_of_name, shorten, why_no_image

_MAX_PADDING = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
_NESTED: Final = (".zip", ".tar", ".tgz", ".tbz2", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
# The first bytes of archives that are not supported
_OTHER_ARCHIVES: Final = (
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"Rar!\x1a\x07", "a RAR file"),
    (b"MSCF", "a CAB file"),
    (b"PK\x07\x08", "one part of a zip file in several parts"),
)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """entries: in an archive; image_bytes: of one image; bytes: of all entries together when unpacked."""

    entries: int
    image_bytes: int
    bytes: int


@dataclass(eq=False)
class SkippedEntryError(Exception):
    """An entry cannot be added. kind, reason: as in `Skipped`."""

    kind: SkipKind
    reason: str


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A file in an archive.

    position: of the entry in the archive, from 1, folders included. name: the path, escaped by `escape_name`. size: in
    bytes, unpacked. skip: why it cannot be added, or None. read: returns the content; call it at most once, before the
    next entry is requested. It raises SkippedEntryError, DamagedArchiveError and OSError.
    """

    position: int
    name: str
    size: int
    skip: SkippedEntryError | None
    read: Callable[[], bytes]


def count_images(path: Path, limits: ArchiveLimits) -> int:
    """Check the limits, and return how many entries will be added or reported. Raises ImageArchiveError, OSError.

    A damaged archive is accepted if at least one of its entries can be read. Raises TableError if a file METADATA_FILE
    in it is not valid.
    """
    count = total = 0
    try:
        for entry in read_entries(path, limits):
            total += entry.size
            _metadata_rows(entry)
            if total > limits.bytes:
                raise ImageArchiveError(f"unpacks to more than {limits.bytes:,} bytes (at entry {shorten(entry.name)})")
            count += entry.skip is None or entry.skip.kind is not SkipKind.HIDDEN
    except DamagedArchiveError as error:
        if not count:
            raise ImageArchiveError(f"is damaged or has an unknown format ({error.reason})") from error
    return count


def read_archive_metadata(path: Path, limits: ArchiveLimits) -> ImageMetadata:
    """Return the metadata by the names of the entries, from the files METADATA_FILE in an archive.

    Raises TableError, ImageArchiveError, OSError. A damaged archive gives what can be read.
    """
    metadata, names = ImageMetadata(), set[str]()
    try:
        for entry in read_entries(path, limits):
            metadata.rows |= _metadata_rows(entry)
            names.add(entry.name)
    except DamagedArchiveError:
        return metadata  # reading the images reports the damage
    metadata.unmatched += [name for name in metadata.rows if name not in names]
    return metadata


def _is_metadata(name: str) -> bool:
    *folders, last = name.split("/")
    return last == METADATA_FILE and not any(map(is_hidden, folders))


def _metadata_rows(entry: ArchiveEntry) -> dict[str, Values]:
    """Return the rows of an entry that is a file METADATA_FILE. Raises TableError, DamagedArchiveError, OSError."""
    if not _is_metadata(entry.name) or entry.skip is None or entry.skip.kind is not SkipKind.HIDDEN:
        return {}
    if entry.size > MAX_TABLE_BYTES:
        raise TableError(entry.name, f"it has {entry.size:,} bytes, and the limit is {MAX_TABLE_BYTES:,}")
    try:
        return archive_rows(entry.name, entry.read())
    except SkippedEntryError as error:
        raise TableError(entry.name, error.reason) from error


def read_entries(path: Path, limits: ArchiveLimits, after: int = 0) -> Generator[ArchiveEntry]:
    """Yield the files of an archive in its order, from the position after `after`.

    Raises DamagedArchiveError after the last entry that can be read, ImageArchiveError if it is not an archive or has
    too many entries, and OSError.
    """
    with path.open("rb") as file:
        start = file.read(512)
    for signature, what in _OTHER_ARCHIVES:
        if start.startswith(signature):
            raise ImageArchiveError(f"is {what}, which is not supported")
    is_tar = start.startswith((b"\x1f\x8b", b"BZh")) or start[257:262] == b"ustar"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")) or (not is_tar and has_directory(path)):
        entries = _zip_entries(path, limits)
    else:
        entries = _tar_entries(path, start, limits)
    with closing(entries):
        for entry in entries:
            if entry.position > after:
                yield entry


def _zip_entries(path: Path, limits: ArchiveLimits) -> Generator[ArchiveEntry]:
    with ZipReader(path) as archive:
        _check_count(archive.announced, limits)
        _check_count(archive.count(limits.entries), limits)
        for position, entry in enumerate(archive.entries(), start=1):
            _check_count(position, limits)
            if entry.damage:
                skip = SkippedEntryError(SkipKind.DAMAGED_ENTRY, entry.damage)
                yield ArchiveEntry(position, entry.name, 0, skip, bytes)
            elif not entry.is_folder:
                skip_entry = _why_zip_entry_is_skipped(entry)
                yield _make_entry((position, entry.name, entry.size), skip_entry, partial(archive.read, entry), limits)


def _tar_entries(path: Path, start: bytes, limits: ArchiveLimits) -> Generator[ArchiveEntry]:
    where, most = "at its start", limits.bytes + limits.entries * 4 * tarfile.BLOCKSIZE
    try:
        with (
            closing(_open_decompressed(path, start)) as plain,
            Tar.open(fileobj=BoundedReader(plain, most), mode="r|", tarinfo=TarHeader, encoding="utf-8") as tar,  # type: ignore[call-overload]
        ):
            for position, member in enumerate(read_headers(tar), start=1):
                _check_count(position, limits)
                if isinstance(member, BadHeader):
                    name = f"(entry at byte {member.offset:,})"
                    skip = SkippedEntryError(SkipKind.DAMAGED_ENTRY, f"Its header is damaged: {member.cause}.")
                    yield ArchiveEntry(position, name, 0, skip, bytes)
                    continue
                where = f"after the entry {shorten(escape_name(member.name))}"
                if not member.isdir():
                    skip_member = _why_member_is_skipped(member)
                    read = partial(_read_member, tar, member)
                    yield _make_entry((position, member.name, member.size), skip_member, read, limits)
            _check_end(plain)
    except TAR_DAMAGE as error:
        raise DamagedArchiveError(where, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno is None or isinstance(error, gzip.BadGzipFile):  # raised by the decompressor, not by the disk
            raise DamagedArchiveError(where, str(error)) from error
        raise


def _check_count(entries: int, limits: ArchiveLimits) -> None:
    if entries > limits.entries:
        raise ImageArchiveError(f"has more than {limits.entries:,} entries")


def _make_entry(
    header: tuple[int, str, int], skip: SkippedEntryError | None, read: Callable[[], bytes], limits: ArchiveLimits
) -> ArchiveEntry:
    """Return the entry of a header: position, name and size. skip: why this kind of entry cannot be read, or None."""
    position, raw_name, size = header
    parts = [part for part in raw_name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if any(is_hidden(part) for part in parts if part != ".."):
        skip = SkippedEntryError(SkipKind.HIDDEN, "Hidden and system files are ignored.")
    elif raw_name.startswith(("/", "\\")) or ".." in raw_name.replace("\\", "/").split("/") or _DRIVE.match(raw_name):
        skip = SkippedEntryError(SkipKind.UNSAFE_PATH, "Its path leads out of the archive.")
        name = raw_name
    is_image = kind_of_name(name)
    if skip is None and _is_metadata(name):
        skip = SkippedEntryError(SkipKind.HIDDEN, "It contains the metadata of the images.")
    if skip is None and is_image is False:
        nested = name.lower().endswith(_NESTED)
        reason = "Archives in an archive are not read." if nested else "Its name does not end like that of an image."
        skip = SkippedEntryError(SkipKind.NOT_AN_IMAGE, reason)
    if skip is None and size > limits.image_bytes:
        skip = SkippedEntryError(SkipKind.TOO_LARGE, f"The file has more than {limits.image_bytes:,} bytes.")
    return ArchiveEntry(
        position, escape_name(name), size, skip, partial(_read, read, name, must_sniff=is_image is None)
    )


def _read(read: Callable[[], bytes], name: str, *, must_sniff: bool) -> bytes:
    """Return the content of an entry. Raises as `ArchiveEntry.read` does."""
    try:
        content = read()
    except DamagedEntryError as error:
        raise SkippedEntryError(SkipKind.DAMAGED_ENTRY, f"The entry is damaged: {error}.") from error
    except TAR_DAMAGE as error:
        where = f"in the entry {shorten(escape_name(name))}"
        raise DamagedArchiveError(where, str(error) or type(error).__name__) from error
    if must_sniff and (found := why_no_image(content[:SNIFFED_BYTES])) is not None:
        raise SkippedEntryError(*found)
    return content


def _why_zip_entry_is_skipped(entry: ZipEntry) -> SkippedEntryError | None:
    if entry.mode & 0o170000 not in (0, 0o100000):
        return SkippedEntryError(SkipKind.LINK, "It is a link or a device.")
    if entry.flags & ENCRYPTED_FLAGS:
        return SkippedEntryError(SkipKind.ENCRYPTED, "It is encrypted.")
    if entry.method not in METHODS:
        return SkippedEntryError(
            SkipKind.DAMAGED_ENTRY, f"It is compressed with method {entry.method}, which is not supported."
        )
    return None


def _why_member_is_skipped(member: tarfile.TarInfo) -> SkippedEntryError | None:
    if member.issym() or member.islnk():
        return SkippedEntryError(SkipKind.LINK, f"It is a link to {shorten(escape_name(member.linkname))}.")
    if not member.isfile() or member.issparse():
        what = "a sparse file" if member.issparse() else "a device or a pipe"
        return SkippedEntryError(SkipKind.SPECIAL_FILE, f"It is {what}.")
    return None


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _open_decompressed(path: Path, start: bytes) -> BinaryIO | gzip.GzipFile | bz2.BZ2File:
    """Open a file whose first bytes are `start`, and decompress it if these are of gzip or bzip2."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if start.startswith(b"BZh"):
        return bz2.open(path)
    return path.open("rb")


def _check_end(file: Any) -> None:
    """Read the padding after the last entry, so that the checksum of a compressed file is compared."""
    left = _MAX_PADDING
    try:
        while left > 0 and (chunk := file.read1(left)):
            left -= len(chunk)
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):  # other data after the compressed file is harmless
            raise
