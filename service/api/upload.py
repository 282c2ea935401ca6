"""Read the images of a request from its body, counting while the bytes arrive.

Promises:
- A body over the limit is refused as soon as that is known: by its Content-Length before a byte is read, else at the
  chunk that passes the limit; file parts count like everything else. So are too many images, and
  a body that is too slow.
- The bytes held over all requests are bounded (`BodyBudget`).
- Nothing is written to disk.

Does not: look into the images, fetch URLs, inflate.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from index.errors import MetadataError
from service.errors import (
    BodyMalformedError,
    BodyTimeoutError,
    BodyTooLargeError,
    BodyTypeError,
    ClientGoneError,
    QueueFullError,
    TooManyImagesError,
)

_TAKEN = (
    "Send one image as image/* or application/octet-stream, "
    "or multipart/form-data with one part named file for each image."
)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """`bytes` and `images` of one request, `seconds` for its body to arrive."""

    bytes: int
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it was sent; `name` is its file name, if it had one."""

    data: bytes
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """The images of a request, and the JSON of the part named `metadata`, if there was one."""

    uploads: list[Upload]
    metadata: dict[str, Any] | None = None


class BodyBudget:
    """How many bytes of bodies all requests hold together. Used from the event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Count `count` more bytes as held. Raises QueueFullError over the limit."""
        if self.held + count > self._limit:
            raise QueueFullError("bytes of bodies", self._limit, 1)
        self.held += count

    def give_back(self, count: int) -> None:
        """Count `count` bytes less."""
        self.held -= count

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Count `count` more bytes as held inside the block. Raises QueueFullError over the limit."""
        self.take(count)
        try:
            yield
        finally:
            self.give_back(count)


def limits_of(request: Request) -> BodyLimits:
    """Return the application's limits for the body of one request."""
    limits: BodyLimits = request.app.state.body_limits
    return limits


def budget_of(request: Request) -> BodyBudget:
    """Return the application's budget for the bodies of all requests."""
    budget: BodyBudget = request.app.state.body_budget
    return budget


@asynccontextmanager
async def receive(request: Request) -> AsyncIterator[Body]:
    """Read a body: an image, or multipart with parts named `file` (and `metadata`). Its bytes count until the end.

    Raises BodyTooLargeError, TooManyImagesError, BodyTimeoutError, BodyTypeError, BodyMalformedError, MetadataError,
    QueueFullError, ClientGoneError. An empty body is one image of no bytes: the decoder says so.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    parser: _MultipartReader | _RawReader
    if kind == b"multipart/form-data":
        parser = _MultipartReader(options.get(b"boundary", b""), limits_of(request).images)
    elif kind in (b"", b"application/octet-stream") or kind.startswith(b"image/"):
        parser = _RawReader()
    else:
        raise BodyTypeError(kind.decode("latin-1"), _TAKEN)
    async with _collected(request, parser.write):
        yield parser.finish()


@asynccontextmanager
async def receive_raw(request: Request) -> AsyncIterator[bytes]:
    """Read a body as it is, whatever its Content-Type. Its bytes count until the end.

    Raises BodyTooLargeError, BodyTimeoutError, QueueFullError, ClientGoneError.
    """
    chunks: list[bytes] = []
    async with _collected(request, chunks.append):
        yield b"".join(chunks)


@asynccontextmanager
async def _collected(request: Request, write: Callable[[bytes], None]) -> AsyncIterator[None]:
    """Hand the whole body to `write`, counting; what was counted is given back at the end."""
    limits, budget = limits_of(request), budget_of(request)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.bytes:
        raise BodyTooLargeError(limits.bytes)
    count = 0
    try:
        try:
            async with asyncio.timeout(limits.seconds):
                async for chunk in request.stream():
                    if count + len(chunk) > limits.bytes:
                        raise BodyTooLargeError(limits.bytes)
                    budget.take(len(chunk))
                    count += len(chunk)
                    write(chunk)
        except TimeoutError:
            raise BodyTimeoutError(limits.seconds) from None
        except ClientDisconnect:
            raise ClientGoneError from None
        yield
    finally:
        budget.give_back(count)


class _RawReader:
    """The body is the image."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def finish(self) -> Body:
        return Body([Upload(b"".join(self._chunks))])


class _MultipartReader:
    """The body is multipart/form-data: parts named `file`, at most `images`, and at most one named `metadata`."""

    def __init__(self, boundary: bytes, images: int) -> None:
        self._images = images
        self._uploads: list[Upload] = []
        self._metadata: bytes | None = None
        self._name, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._part: str = ""
        self._file_name: str | None = None
        self._data = bytearray()
        self._complete = False
        if not boundary:
            raise BodyMalformedError("multipart/form-data: the Content-Type has no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header,
                    "on_headers_finished": self._opened,
                    "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
                    "on_part_end": self._closed,
                    "on_end": self._end,
                },
            )
        except FormParserError as exc:
            raise BodyMalformedError(f"multipart/form-data: {exc}") from exc

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as exc:
            raise BodyMalformedError(f"multipart/form-data: {exc}") from exc

    def finish(self) -> Body:
        if not self._complete:
            raise BodyMalformedError("multipart/form-data: the closing boundary is missing, the body was cut")
        if not self._uploads:
            raise BodyMalformedError("multipart/form-data: no part is named file; each image is such a part")
        return Body(self._uploads, None if self._metadata is None else _parse_metadata(self._metadata))

    def _begin(self) -> None:
        self._disposition = b""
        self._data = bytearray()

    def _header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _opened(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        file_name = options.get(b"filename")
        self._file_name = None if not file_name else file_name.decode("utf-8", "surrogateescape")
        if self._part == "file" and len(self._uploads) >= self._images:
            raise TooManyImagesError(self._images)
        if self._part not in ("file", "metadata"):
            raise BodyMalformedError(
                f"multipart/form-data: a part is named {self._part!r}; they are file (an image) or metadata (JSON)"
            )
        if self._part == "metadata" and self._metadata is not None:
            raise BodyMalformedError("multipart/form-data: more than one part is named metadata")

    def _closed(self) -> None:
        if self._part == "file":
            self._uploads.append(Upload(bytes(self._data), self._file_name))
        else:
            self._metadata = bytes(self._data)

    def _end(self) -> None:
        self._complete = True


def _parse_metadata(data: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise MetadataError(f"is not JSON ({exc})") from None
    if not isinstance(metadata, dict):
        raise MetadataError(f"is a JSON {type(metadata).__name__}")
    return metadata
