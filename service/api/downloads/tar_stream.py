"""Stream a folder as an uncompressed tar file, without writing that to disk.

Guarantees: the length is known before the first byte. The bytes depend only on the files and their names, so an
interrupted download can be resumed with a Range header. A file that is missing or has another size is an error before
the download; if a file changes during the download, the response ends early.
Out of scope: compression; several ranges in one request, which get the whole file.
References: RFC 9110, 14 (Range); tarfile's documentation of GNU_FORMAT.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from service.api.paths import HEAD

_BLOCK: Final = 1 << 20
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_END: Final = bytes(2 * tarfile.BLOCKSIZE)
_TYPE: Final = "application/x-tar"
_Part = tuple[bytes | Path, int]
DOWNLOAD: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The tar file.", "content": {_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The range of the tar file."},
}
"""The OpenAPI responses of a download."""


@dataclass(frozen=True)
class TarFolder:
    """A folder to stream.

    files: the size of each file, by its path relative to the folder. created: the time of all files. version: changes
    when the content of a file does.
    """

    path: Path
    files: Mapping[str, int]
    created: datetime
    version: str

    def wrong_files(self) -> list[str]:
        """Return the files that are missing or have another size, each with the reason."""
        wrong = []
        for name, size in self.files.items():
            try:
                found = (self.path / name).stat().st_size
            except OSError as error:
                wrong.append(f"{name}: {error.strerror}")
            else:
                if found != size:
                    wrong.append(f"{name} has {found:,} of {size:,} bytes")
        return wrong


def tar_response(request: Request, folder: TarFolder) -> Response:
    """Return the response to a GET or HEAD: the tar file, or the range of it that a GET asked for.

    Raises HTTPException for a range that starts after the end.
    """
    parts = [*_parts(folder)]
    size = sum(length for _, length in parts)
    name = folder.path.name
    etag = f'"{hashlib.sha256(f"{name} {folder.version}".encode()).hexdigest()[:32]}"'
    file_name = _UNSAFE.sub("_", name)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{file_name}.tar"',
        "ETag": etag,
        "Last-Modified": format_datetime(folder.created, usegmt=True),
    }
    start, end, status = 0, size, 200
    head = bool(request.scope.get(HEAD))
    asked = None if head else _RANGE.fullmatch(request.headers.get("range", ""))  # only GET has ranges
    if asked and any(asked.groups()) and request.headers.get("if-range", etag) == etag:
        first, last = asked.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            raise HTTPException(
                416, f"The file has only {size:,} bytes. Request a smaller range.", {"Content-Range": f"bytes */{size}"}
            )
        headers["Content-Range"], status = f"bytes {start}-{end - 1}/{size}", 206
    headers["Content-Length"] = str(end - start)
    if head:
        return Response(None, status, headers, _TYPE)
    return StreamingResponse(_read(parts, start, end), status, headers, _TYPE)


def _parts(folder: TarFolder) -> Iterator[_Part]:
    """Yield what the tar file consists of, each with its length: bytes, or the path of a file."""
    for name, size in folder.files.items():
        entry = tarfile.TarInfo(f"{folder.path.name}/{name}")
        entry.size, entry.mtime, entry.mode = size, int(folder.created.timestamp()), 0o644
        header = entry.tobuf(tarfile.GNU_FORMAT)
        yield header, len(header)
        yield folder.path / name, size
        padding = bytes(-size % tarfile.BLOCKSIZE)
        yield padding, len(padding)
    yield _END, len(_END)


def _read(parts: Iterable[_Part], start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to before `end` of all parts together. Raises OSError."""
    position = 0
    for content, length in parts:
        first, last = max(start - position, 0), min(end - position, length)
        position += length
        if first >= last:
            continue
        if isinstance(content, bytes):
            yield content[first:last]
            continue
        with content.open("rb") as file:
            file.seek(first)
            while first < last:
                block = file.read(min(_BLOCK, last - first))
                if not block:
                    raise OSError(f"{content} became shorter during the download.")
                first += len(block)
                yield block
