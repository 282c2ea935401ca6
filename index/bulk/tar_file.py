"""Read the headers of an untrusted tar file as a stream, with bounded memory and time.

`tarfile` keeps every global header and the map of every sparse file in memory, needs a time that grows with the square
of their size, follows chains of headers by recursion, and takes a damaged header for the end of the file.

Guarantees: memory is bounded by the headers of one entry. A damaged header is reported and costs one entry. Name, link
and size of an entry come from its pax or GNU headers, if it has them. Global headers are ignored.
Out of scope: the content of sparse files, which are only marked as such.
References: POSIX.1-2017 pax, GNU tar 1.35 "Basic Tar Format".
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from index.errors import ImageArchiveError

TAR_DAMAGE: Final = (tarfile.TarError, zlib.error, EOFError, ValueError)
_MAX_HEADER_BYTES = 64 * 1024
_MAX_NESTING = 16
_PAX_LENGTH = re.compile(rb"([0-9]{1,6}) ")
_DESCRIBING_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# Documented only by their common base class.
_EMPTY, _END, _TRUNCATED, _INVALID, _SUBSEQUENT = (
    vars(tarfile)[f"{name}HeaderError"] for name in ("Empty", "EOF", "Truncated", "Invalid", "Subsequent")
)


class BoundedReader:
    """Reads a tar file. What was decompressed before an error is returned first, and the total size is limited."""

    def __init__(self, file: Any, limit: int) -> None:
        """limit: how many bytes may be read."""
        self._file = file
        self._limit = self._left = limit
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; fewer at the end. Raises ImageArchiveError if there are more than the limit."""
        data = bytearray()
        while len(data) < size and self._error is None:
            try:
                chunk = self._file.read1(size - len(data))
            except (OSError, EOFError, zlib.error) as error:
                self._error = error
                break
            if not chunk:
                break
            data += chunk
        if self._error is not None and not data:
            raise self._error
        self._left -= len(data)
        if self._left < 0:
            raise ImageArchiveError(f"unpacks to more than {self._limit:,} bytes")
        return bytes(data)


@dataclass(frozen=True, slots=True)
class BadHeader:
    """A damaged header at the byte `offset`. cause: what is wrong with it."""

    offset: int
    cause: str


class Tar(tarfile.TarFile):
    """A tar file that remembers headers which are damaged, and continues at the next one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.bad_headers: list[BadHeader] = []
        self.nesting = 0  # headers that are being read, each of which describes the next one
        super().__init__(*args, **options)


class TarHeader(tarfile.TarInfo):
    """A tar header. Those that only describe the next one are read into memory, so their size is limited."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0:
            raise _INVALID("the size is negative")
        if member.type in _DESCRIBING_TYPES and member.size > _MAX_HEADER_BYTES:
            raise ImageArchiveError(f"has a header of {member.size:,} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Self:
        """Read the next header, and skip what is not one. `TarFile.next` would take that for the end."""
        tar: Tar = tarfile_
        tar.nesting += 1
        if tar.nesting > _MAX_NESTING:
            raise ImageArchiveError(f"has more than {_MAX_NESTING} headers for one entry")
        bad = len(tar.bad_headers)
        try:
            if tar.nesting > 1:  # the header that the previous one describes
                return super().fromtarfile(tar)
            while True:
                offset = tar.fileobj.tell()
                try:
                    return super().fromtarfile(tar)
                except _TRUNCATED as error:
                    raise tarfile.ReadError("it ends inside a header") from error
                except _EMPTY:
                    if offset and len(tar.bad_headers) == bad:
                        tar.bad_headers.append(BadHeader(offset, "the end marker is missing, so it may be cut off"))
                    raise
                except (_END, _INVALID, _SUBSEQUENT) as error:
                    is_end = isinstance(error, _END)
                    if not offset or (is_end and len(tar.bad_headers) == bad):
                        raise
                    if len(tar.bad_headers) == bad:
                        tar.bad_headers.append(BadHeader(offset, str(error)))
        finally:
            tar.nesting -= 1

    # `tarfile` calls the next two methods. Its own ones keep all global headers and sparse maps in memory, and take a
    # time that grows with the square of their size.

    def _proc_pax(self, tar: Any) -> Self:
        """Read a pax header, and apply name, link and size to the entry after it. Global headers are ignored."""
        records = _pax_records(_read_blocks(tar, self.size)[: self.size])
        try:
            member = self.fromtarfile(tar)
        except tarfile.HeaderError as error:
            raise _SUBSEQUENT(str(error)) from error
        if self.type == tarfile.XGLTYPE:
            return member
        member.offset = self.offset
        member.name = records.get("GNU.sparse.name", records.get("path", member.name)).rstrip("/")
        member.linkname = records.get("linkpath", member.linkname)
        if "size" in records:
            stored = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            member.size = int(records["size"])
            tar.offset = member.offset_data + (_padded(member.size) if stored else 0)
        if any(name.startswith("GNU.sparse.") for name in records):
            member.sparse = b""  # `issparse` is true
        return member

    def _proc_sparse(self, tar: Any) -> Self:
        """Skip the map of a sparse file of GNU tar, which is not read."""
        _, is_extended, _ = self._sparse_structs  # type: ignore[attr-defined]
        while is_extended:
            is_extended = _read_blocks(tar, tarfile.BLOCKSIZE)[504]
        self.sparse = b""
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + _padded(self.size)
        return self


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_blocks(tar: Any, size: int) -> bytes:
    data: bytes = tar.fileobj.read(_padded(size))
    if len(data) < _padded(size):
        raise tarfile.ReadError("it ends inside a header")
    return data


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the records `LENGTH NAME=VALUE` of a pax header, as far as they are valid."""
    records: dict[str, str] = {}
    at = 0
    while match := _PAX_LENGTH.match(data, at):
        end = at + int(match[1])
        name, equals, value = data[match.end() : end - 1].partition(b"=")
        if end <= match.end() or not equals:
            break
        records[name.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        at = end
    return records


def read_headers(tar: Tar) -> Iterator[tarfile.TarInfo | BadHeader]:
    """Yield the entries and the damaged headers in their order."""
    while True:
        try:
            member = tar.next()
        finally:
            bad = tar.bad_headers.copy()
            tar.bad_headers.clear()
            yield from bad
        if member is None:
            return
        tar.members.clear()  # type: ignore[attr-defined]  # otherwise the headers of all entries stay in memory
        if member.size < 0:  # from an extended header
            raise tarfile.ReadError("the size of an entry is negative")
        yield member
