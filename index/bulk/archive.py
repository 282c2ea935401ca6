"""Read images from an untrusted .zip, .tar, .tar.gz or .tar.bz2 archive.

Guarantees: nothing is unpacked to disk; `count_images` checks every entry before the first image is read, and rejects
the whole archive, naming the entry, if a path leads out of it, an entry is a link, a device or encrypted, or there are
too many entries or unpacked bytes; no entry larger than the limit is read into memory.
Out of scope: archives inside archives; entries whose names do not end like an image's.
"""

from __future__ import annotations

import bz2
import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self

from index.errors import ImageArchiveError
from model_store.image import SUFFIXES

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_MAX_HEADER_BYTES = 64 * 1024
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """entries: in an archive; image_bytes: of one image; bytes: of all entries together when unpacked."""

    entries: int
    image_bytes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry that may be read. size: in bytes, unpacked."""

    name: str
    size: int
    is_image: bool
    read: Callable[[], bytes]


def count_images(path: Path, limits: ArchiveLimits) -> int:
    """Check every entry, and return the number of images. Raises ImageArchiveError."""
    images = total = 0
    for number, entry in enumerate(_entries(path), start=1):
        total += entry.size
        if number > limits.entries:
            raise ImageArchiveError(f"has more than {limits.entries:,} entries")
        if total > limits.bytes:
            raise ImageArchiveError(f"unpacks to more than {limits.bytes:,} bytes (at entry {entry.name[:80]!a})")
        images += entry.is_image
    return images


def read_images(path: Path, limits: ArchiveLimits) -> Iterator[tuple[str, bytes | None]]:
    """Yield the images of an archive that `count_images` accepted, in its order: path and bytes.

    The bytes are None for an image that is larger than the limit. Raises ImageArchiveError.
    """
    with _translate_errors():
        for entry in _entries(path):
            if entry.is_image:
                name = "/".join(part for part in entry.name.split("/") if part not in ("", "."))
                yield name, entry.read() if entry.size <= limits.image_bytes else None


def _entries(path: Path) -> Iterator[_Entry]:
    """Yield every entry after checking it."""
    with _translate_errors():
        with path.open("rb") as file:
            start = file.read(4)
        if start in (b"PK\x03\x04", b"PK\x05\x06"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    _check_zip_entry(info)
                    is_image = not info.is_dir() and _is_image(info.filename)
                    yield _Entry(info.filename, info.file_size, is_image, partial(archive.read, info))
            return
        with (
            _open_decompressed(path, start) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=_TarHeader) as tar,
        ):
            for member in tar:
                _check_path(member.name)
                if not (member.isfile() or member.isdir()) or member.issparse():
                    raise _forbidden(member.name, "a link, a device or a sparse file")
                is_image = member.isfile() and _is_image(member.name)
                yield _Entry(member.name, member.size, is_image, partial(_read_member, tar, member))


def _check_zip_entry(info: zipfile.ZipInfo) -> None:
    _check_path(info.filename)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _forbidden(info.filename, "a link or a device")
    if info.flag_bits & 1:
        raise _forbidden(info.filename, "encrypted")
    if info.compress_type not in _ZIP_METHODS:
        raise _forbidden(info.filename, "compressed with a method that is not supported")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()  # None only for what is not a file


class _TarHeader(tarfile.TarInfo):
    """A tar header. Those that only describe the next one are read into memory, so their size is limited."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header."""
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.size > _MAX_HEADER_BYTES:
            raise ImageArchiveError(f"has a header of {member.size:,} bytes")
        return member


def _open_decompressed(path: Path, start: bytes) -> BinaryIO | gzip.GzipFile | bz2.BZ2File:
    """Open a file whose first bytes are `start`, and decompress it if these are of gzip or bzip2."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if start.startswith(b"BZh"):
        return bz2.open(path)
    return path.open("rb")


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ImageArchiveError(f"is damaged or has an unknown format ({error})") from error
    except (NotImplementedError, RuntimeError) as error:
        raise ImageArchiveError(f"uses a feature that is not supported ({error})") from error


def _is_image(name: str) -> bool:
    parts = name.split("/")
    # macOS adds a "._" file for each file; it has the same suffix, but contains no image.
    return Path(name).suffix.lower() in SUFFIXES and "__MACOSX" not in parts and not parts[-1].startswith("._")


def _check_path(name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
        raise _forbidden(name, "a path that leads out of the archive")


def _forbidden(name: str, reason: str) -> ImageArchiveError:
    return ImageArchiveError(f"has the entry {name[:80]!a}, which is {reason}")
