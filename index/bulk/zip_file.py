"""Read a zip file entry by entry, without holding its directory in memory.

`zipfile` reads the whole central directory when it opens a file: 750 MB and 19 s for 2 million entries in 94 MB. Here
the number of entries is known before, and the directory is read in pieces.

Guarantees: the memory is bounded by one entry's header and content. An entry that is damaged raises an error when it is
read, and does not affect the others; the checksum of what is returned matches. At most the declared size is unpacked.
Out of scope: encrypted entries, compression methods other than stored, deflate and bzip2, archives in several parts.
References: PKWARE APPNOTE 6.3.10, sections 4.3 (structure), 4.4 (fields), 4.5 (extra fields), appendix D (names).
"""

from __future__ import annotations

import bz2
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from index.errors import ImageArchiveError

_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
METHODS: Final = (_STORED, _DEFLATED, _BZIP2)
UTF8_FLAG: Final = 1 << 11
ENCRYPTED_FLAGS: Final = 1 | 1 << 6 | 1 << 13

_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")  # zip64 end of central directory locator
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LENGTHS = struct.Struct("<28x3H")  # of name, extra field and comment in a header of the directory
_COUNT_CHUNK = 1 << 20
_MAX_COMMENT = 65_535
_CHUNK = 1 << 16
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF


class DamagedEntryError(Exception):
    """The content of one entry cannot be read. The message says why."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An entry of the central directory. Sizes are in bytes; mode: of Unix, or 0; offset: of its local header.

    damage: why the directory does not describe the entry; its other fields are then empty.
    """

    name: str
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    mode: int
    offset: int
    damage: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether the entry is a folder."""
        return self.name.endswith(("/", "\\")) or self.mode & 0o170000 == 0o040000


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory is. shift: the number of bytes in front of the zip file proper."""

    entries: int
    offset: int
    size: int
    shift: int


class ZipReader:
    """An open zip file. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Find the directory. Raises ImageArchiveError if there is none, OSError."""
        self._file = path.open("rb")
        try:
            self._length = self._file.seek(0, 2)
            self._directory = _find_directory(self._file, self._length)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ZipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def announced(self) -> int:
        """How many entries the end record announces. Some writers count modulo 65,536."""
        return self._directory.entries

    def count(self, limit: int) -> int:
        """Return how many headers the directory has, or a number above `limit`. It only reads their lengths."""
        at, end = self._directory.offset, self._directory.offset + self._directory.size
        count = 0
        while at < end and count <= limit:
            buffer, position = self._read(at, min(_COUNT_CHUNK, end - at)), 0
            while position + _CENTRAL.size <= len(buffer):
                name, extra, comment = _LENGTHS.unpack_from(buffer, position)
                position += _CENTRAL.size + name + extra + comment
                count += 1
            at += max(position, 1)
            if not buffer:
                break
        return count

    def entries(self) -> Iterator[ZipEntry]:
        """Yield the entries of the directory. A damaged part of it is yielded as one entry with `damage`."""
        at, end = self._directory.offset, self._directory.offset + self._directory.size
        buffer, start, count = b"", at, 0
        while at < end:
            if at + _CENTRAL.size > start + len(buffer):
                buffer, start = self._read(at, max(_CHUNK, _CENTRAL.size)), at
            fields = buffer[at - start : at - start + _CENTRAL.size]
            count += 1
            if len(fields) < _CENTRAL.size or not fields.startswith(b"PK\x01\x02"):
                yield _damaged(at, "The directory of the archive is damaged here.")
                at = self._find_header(at + 1, end)
                continue
            values = _CENTRAL.unpack(fields)
            length = _CENTRAL.size + sum(values[10:13])  # name, extra field, comment
            if at + length > start + len(buffer):
                buffer, start = self._read(at, max(_CHUNK, length)), at
            yield _entry(values, buffer[at - start + _CENTRAL.size : at - start + length], self._directory.shift)
            at += length
        if (self.announced - count) % (_MAX16 + 1) and self.announced != _MAX16:
            yield _damaged(end, f"The archive announces {self.announced:,} entries, but {count:,} were found.")

    def _find_header(self, at: int, end: int) -> int:
        """Return where the next header of the directory is, or its end."""
        while at < end:
            found = self._read(at, min(_CHUNK, end - at)).find(b"PK\x01\x02")
            if found >= 0:
                return at + found
            at += _CHUNK - 3
        return end

    def read(self, entry: ZipEntry) -> bytes:
        """Return the content of an entry. Raises DamagedEntryError, OSError."""
        header = self._read(entry.offset, _LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
            raise DamagedEntryError("its local header is missing")
        name_length, extra_length = _LOCAL.unpack(header)[-2:]
        at = entry.offset + _LOCAL.size + name_length + extra_length
        left = entry.compressed
        decompressor = _decompressor(entry.method)
        content = bytearray()
        try:
            while left > 0 and not decompressor.eof:
                chunk = self._read(at, min(left, _CHUNK))
                if not chunk:
                    raise DamagedEntryError("the archive ends inside it")
                at, left = at + len(chunk), left - len(chunk)
                # One byte more than declared is enough to detect that the declared size is wrong.
                content += decompressor.decompress(chunk, entry.size + 1 - len(content))
                while len(content) <= entry.size and (more := _pending(decompressor, entry.size + 1 - len(content))):
                    content += more
                if len(content) > entry.size:
                    raise DamagedEntryError(f"it unpacks to more than the {entry.size:,} bytes that it declares")
        except (zlib.error, OSError, EOFError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the bzip2 decompressor
                raise
            raise DamagedEntryError(f"its compressed data is damaged ({error})") from error
        if len(content) < entry.size:
            raise DamagedEntryError(f"it has {len(content):,} of the {entry.size:,} bytes that it declares")
        if zlib.crc32(content) != entry.crc:
            raise DamagedEntryError("its checksum does not match")
        return bytes(content)

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(min(at, self._length))
        return self._file.read(size)


def has_directory(path: Path) -> bool:
    """Return whether the file ends like a zip file, also if it starts with other data (a self-extracting archive)."""
    try:
        with ZipReader(path):
            return True
    except ImageArchiveError:
        return False


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Stored:
    """Passes the data through, like a decompressor."""

    eof = False

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return data[:max_length]


def _decompressor(method: int) -> _Decompressor:
    if method == _DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS)
    if method == _BZIP2:
        return bz2.BZ2Decompressor()
    return _Stored()


def _pending(decompressor: _Decompressor, max_length: int) -> bytes:
    """Return output that `decompress` held back because of its limit."""
    if hasattr(decompressor, "needs_input"):  # bzip2 keeps the input itself
        return b"" if decompressor.needs_input or decompressor.eof else decompressor.decompress(b"", max_length)
    tail: bytes = getattr(decompressor, "unconsumed_tail", b"")
    return decompressor.decompress(tail, max_length) if tail else b""


def _find_directory(file: BinaryIO, length: int) -> _Directory:
    """Return where the central directory is.

    A comment may contain the signature of the end record, so that each occurrence is tried, the last one first; those
    whose comment fills the rest of the file come before those with data after them.
    """
    tail_start = max(0, length - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    found: list[int] = []
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail):
            found.append(at)
        at = tail.rfind(b"PK\x05\x06", 0, at + 3)
    found.sort(key=lambda at: at + _END.size + _END.unpack_from(tail, at)[-1] != len(tail))
    for at in found:
        directory = _directory_at(file, tail_start + at, _END.unpack_from(tail, at))
        if directory is not None:
            return directory
    raise ImageArchiveError("is a zip file without the directory at its end: it is incomplete or damaged")


def _directory_at(file: BinaryIO, end: int, values: tuple[int, ...]) -> _Directory | None:
    """Return the directory that the end record at the byte `end` describes, or None if it is not there."""
    _, disk, first_disk, _, entries, size, offset, _ = values
    if (disk not in (0, _MAX16) or first_disk not in (0, _MAX16)) and disk != first_disk:
        raise ImageArchiveError("is one part of a zip file in several parts, which is not supported")
    if disk not in (0, _MAX16):
        raise ImageArchiveError("is one part of a zip file in several parts, which is not supported")
    file.seek(max(0, end - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if end >= _LOCATOR.size and locator.startswith(b"PK\x06\x07"):
        end64 = _find_end64(file, end, _LOCATOR.unpack(locator)[2])
        if end64 is not None:
            end, fields = end64
            entries, size, offset = fields[7:10]
    start = end - size
    file.seek(max(0, start))
    if start < 0 or offset > start or (size and file.read(4) != b"PK\x01\x02"):
        return None
    return _Directory(entries, start, size, start - offset)


def _find_end64(file: BinaryIO, end: int, offset: int) -> tuple[int, tuple[int, ...]] | None:
    """Return the zip64 end record and where it is: at `offset`, or in front of its locator if data precedes the zip."""
    for at in (end - _LOCATOR.size - _END64.size, offset):
        if 0 <= at <= end - _LOCATOR.size - _END64.size:
            file.seek(at)
            data = file.read(_END64.size)
            if data.startswith(b"PK\x06\x06"):
                return at, _END64.unpack(data)
    return None


def _entry(values: tuple[int, ...], tail: bytes, shift: int) -> ZipEntry:
    """Return an entry from the fields of its central header, and the name, extra field and comment after them."""
    (
        _,
        made_by,
        _,
        flags,
        method,
        _,
        _,
        crc,
        compressed,
        size,
        name_length,
        extra_length,
        _,
        _,
        _,
        attributes,
        offset,
    ) = values
    raw, extra = tail[:name_length], tail[name_length : name_length + extra_length]
    unicode_name: str | None = None
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        data, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _ZIP64:
            wide = [value[0] for value in struct.iter_unpack("<Q", data[: len(data) // 8 * 8])]
            # Only the fields that do not fit into 32 bits are there, in this order.
            if size == _MAX32 and wide:
                size = wide.pop(0)
            if compressed == _MAX32 and wide:
                compressed = wide.pop(0)
            if offset == _MAX32 and wide:
                offset = wide.pop(0)
        elif kind == _UNICODE_PATH and data[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
            unicode_name = data[5:].decode("utf-8", "surrogateescape")
    name = unicode_name or _decode_name(raw, flags)
    mode = attributes >> 16 if made_by >> 8 in (3, 19) else 0  # Unix, macOS
    return ZipEntry(name, flags, method, crc, compressed, size, mode, offset + shift)


def _damaged(offset: int, damage: str) -> ZipEntry:
    return ZipEntry(f"(entry at byte {offset:,})", 0, 0, 0, 0, 0, 0, offset, damage)


def _decode_name(raw: bytes, flags: int) -> str:
    """Decode a name. Without the UTF-8 flag it is UTF-8 if it is valid as such (macOS), and otherwise code page 437."""
    if flags & UTF8_FLAG:
        return raw.decode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")
