"""The images in a .zip, .tar, .tar.gz or .tar.bz2 that a stranger packed.

Promises: nothing is ever unpacked to disk; before the first image is handed out, every entry was looked at, and an
archive with a path that leads out of it, a link, a device, a password, too many entries, or more bytes than allowed
when unpacked, is refused whole, with the entry's name; no entry is ever held in memory past its limit.
Does not: look into archives inside archives, take entries that are no images by their name.
"""

from __future__ import annotations

import bz2
import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from index.errors import ImageArchiveError
from model_store.image import SUFFIXES

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_LONGEST_HEADER = 64 * 1024
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """`entries` in an archive, bytes of one image, and bytes of all entries together when unpacked."""

    entries: int
    image_bytes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Packed:
    """An image in an archive: its path there, and its bytes; None when it is larger than the limit."""

    name: str
    data: bytes | None


def count_images(path: Path, limits: ArchiveLimits) -> int:
    """Look at every entry, and return how many are images. Raises ImageArchiveError."""
    images = total = 0
    for entries, (name, size, image) in enumerate(_entries(path), start=1):
        total += size
        if entries > limits.entries:
            raise ImageArchiveError(f"has more than {limits.entries:,} entries")
        if total > limits.bytes:
            raise ImageArchiveError(f"has more than {limits.bytes:,} bytes when it is unpacked (at {name[:80]!a})")
        images += image
    return images


def read_images(path: Path, limits: ArchiveLimits) -> Iterator[Packed]:
    """Yield the images of an archive that `count_images` found good, in its order. Raises ImageArchiveError."""
    with _damage_named():
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and _is_image(info.filename):
                        small = info.file_size <= limits.image_bytes
                        yield Packed(_key(info.filename), archive.read(info) if small else None)
            return
        with _open_tar(path) as tar:
            for member in tar:
                if member.isfile() and _is_image(member.name):
                    file = tar.extractfile(member) if member.size <= limits.image_bytes else None
                    yield Packed(_key(member.name), None if file is None else file.read())


def _entries(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (name, bytes when unpacked, whether it is an image) of every entry, each of them checked."""
    with _damage_named():
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    _check_name(info.filename)
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                        raise ImageArchiveError(f"has {info.filename[:80]!a}, which is a link or a device")
                    if info.flag_bits & 1:
                        raise ImageArchiveError(f"has {info.filename[:80]!a}, which is encrypted")
                    if info.compress_type not in _ZIP_METHODS:
                        raise ImageArchiveError(f"has {info.filename[:80]!a}, compressed in a way that is not taken")
                    yield info.filename, info.file_size, not info.is_dir() and _is_image(info.filename)
            return
        with _open_tar(path) as tar:
            for member in tar:
                _check_name(member.name)
                if not (member.isfile() or member.isdir()) or member.issparse():
                    raise ImageArchiveError(f"has {member.name[:80]!a}, which is a link, a device or a file with holes")
                yield member.name, member.size, member.isfile() and _is_image(member.name)


class _Member(tarfile.TarInfo):
    """A tar header; the ones that only describe the next are read into memory whole, so they must be small."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.size > _LONGEST_HEADER:
            raise ImageArchiveError(f"has a header of {member.size:,} bytes")
        return member


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as file:
        start = file.read(3)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as plain, tarfile.open(fileobj=plain, mode="r|", tarinfo=_Member) as tar:
                yield tar
        elif start == b"BZh":
            with bz2.BZ2File(file) as plain2, tarfile.open(fileobj=plain2, mode="r|", tarinfo=_Member) as tar:
                yield tar
        else:
            with tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as tar:
                yield tar


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ImageArchiveError(f"is damaged, or of another kind ({error})") from error
    except (NotImplementedError, RuntimeError) as error:
        raise ImageArchiveError(f"needs what is not taken ({error})") from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _is_image(name: str) -> bool:
    parts = name.split("/")
    # Finder's shadows of files end like images, and are none.
    return Path(name).suffix.lower() in SUFFIXES and "__MACOSX" not in parts and not parts[-1].startswith("._")


def _key(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _check_name(name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
        raise ImageArchiveError(f"has {name[:80]!a}, a path that leads out of it")
