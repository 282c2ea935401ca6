"""Reads request bodies: images, raw bytes, or chunks, with limits that are checked while the bytes arrive.

Guarantees:
- A body over the limit is rejected as early as possible: by its Content-Length before any byte is read, otherwise at
  the chunk that exceeds the limit. Too many images, long metadata and slow bodies are rejected in the same way.
- The number of bytes in memory, of all requests together, is limited (`BodyBudget`).
- Nothing is written to disk.

Out of scope: decoding images, fetching URLs, decompression.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import ClientDisconnect, Request

from index.errors import MetadataError
from model_store.decoding.formats import format_of
from model_store.errors import ImageFormatError, ImageUnreadableError
from service import errors
from service.api.bounded_json import loads
from service.settings import Settings

# Of the multipart part `metadata`, for all images together.
_MAX_METADATA_BYTES = 1_000_000
_ACCEPTED = (
    "Send one image as the body, as image/* or application/octet-stream, "
    "or use multipart/form-data with one part named 'file' for each image."
)


UNSPECIFIC_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types that clients send for any file: none, the general one, and the default of `curl --data-binary`."""


@dataclass(frozen=True, slots=True)
class Body:
    """The images of a request.

    names: the file name of each image; None if the client sent none. metadata: the JSON object of the part with that
    name; None if there was none.
    """

    images: list[bytes]
    names: list[str | None]
    metadata: dict[str, Any] | None = None


class BodyBudget:
    """Limits the bytes of all request bodies in memory; `held` is their number. Use it from the event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Reserve `count` bytes. Raises QueueFullError if that would exceed the limit."""
        if self.held + count > self._limit:
            raise errors.QueueFullError("bytes of bodies", self._limit, 1)
        self.held += count

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Reserve `count` bytes for the duration of the block. Raises QueueFullError if that would exceed the limit."""
        self.take(count)
        try:
            yield
        finally:
            self.held -= count


def media_type(request: Request) -> str:
    """Return the Content-Type without its parameters, in lower case; "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def announced_length(request: Request) -> int | None:
    """Return the Content-Length, in bytes; None if there is none, or if it is not a number."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


async def read_body(
    request: Request, limit: int, timeout_s: float, *, slowest_rate: float | None = None
) -> AsyncIterator[bytes]:
    """Yield the chunks of a request body of at most `limit` bytes.

    timeout_s: seconds until the whole body must have arrived. slowest_rate: bytes per second; each `slowest_rate` bytes
    that arrive extend the time by a second. Raises BodyTooLargeError, BodyTimeoutError, ClientGoneError.
    """
    if (announced_length(request) or 0) > limit:
        raise errors.BodyTooLargeError(limit)
    started = asyncio.get_running_loop().time()
    stream, count = request.stream(), 0
    while True:
        allowed_s = timeout_s + (count / slowest_rate if slowest_rate else 0)
        try:
            async with asyncio.timeout_at(started + allowed_s):
                chunk = await anext(stream, b"")
        except TimeoutError:
            raise errors.BodyTimeoutError(round(allowed_s, 1)) from None
        except ClientDisconnect:
            raise errors.ClientGoneError from None
        if not chunk:
            return
        count += len(chunk)
        if count > limit:
            raise errors.BodyTooLargeError(limit)
        yield chunk


@asynccontextmanager
async def receive(request: Request) -> AsyncIterator[Body]:
    """Read an image of any Content-Type, or multipart/form-data with parts named `file` and `metadata`.

    The bytes count towards the budget until the block ends. An empty body is one image of 0 bytes: decoding it fails.
    Raises BodyTooLargeError, TooManyImagesError, BodyTimeoutError, BodyTypeError, BodyMalformedError, MetadataError,
    QueueFullError, ClientGoneError.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        try:
            multipart = _MultipartReader(options.get(b"boundary", b""), request.app.state.fc7.settings.max_images)
            async with _buffered(request, multipart.parser.write):
                yield multipart.finish()
        except FormParserError as exc:
            raise errors.BodyMalformedError(f"The multipart/form-data body is malformed: {exc}.") from exc
    else:
        async with receive_raw(request) as data:
            if not (kind in (b"", b"application/octet-stream") or kind.startswith(b"image/") or _is_image(data)):
                raise errors.BodyTypeError(kind.decode("latin-1"), _ACCEPTED)
            yield Body([data], [None])


def _is_image(data: bytes) -> bool:
    """Return whether the data is an image, supported or not. `curl --data-binary` names it a form."""
    try:
        format_of(data)
    except ImageFormatError:
        return True
    except ImageUnreadableError:
        return False
    return True


@asynccontextmanager
async def receive_raw(request: Request) -> AsyncIterator[bytes]:
    """Read a body of any Content-Type. Its bytes count towards the budget until the block ends.

    Raises BodyTooLargeError, BodyTimeoutError, QueueFullError, ClientGoneError.
    """
    chunks: list[bytes] = []
    async with _buffered(request, chunks.append):
        yield b"".join(chunks)


@asynccontextmanager
async def _buffered(request: Request, write: Callable[[bytes], object]) -> AsyncIterator[None]:
    """Pass the whole body to `write`. Its bytes count towards the budget until the block ends."""
    settings: Settings = request.app.state.fc7.settings
    budget: BodyBudget = request.app.state.body_budget
    count = 0
    try:
        async for chunk in read_body(request, settings.max_body_bytes, settings.upload_timeout_s):
            budget.take(len(chunk))
            count += len(chunk)
            write(chunk)
        yield
    finally:
        budget.held -= count


class _MultipartReader:
    """Parses multipart/form-data: at most `images` parts named `file`, and at most one named `metadata`.

    The parser raises FormParserError.
    """

    def __init__(self, boundary: bytes, images: int) -> None:
        self._max_images = images
        self._images: list[bytes] = []
        self._names: list[str | None] = []
        self._metadata: bytes | None = None
        self._name, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._part = ""
        self._file_name: str | None = None
        self._data = bytearray()
        if not boundary:
            raise errors.BodyMalformedError("The Content-Type multipart/form-data has no boundary.")
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
            },
        )

    def finish(self) -> Body:
        if self.parser.state != MultipartState.END:
            raise errors.BodyMalformedError(
                "The multipart/form-data body is incomplete: its closing boundary is missing."
            )
        if not self._images:
            raise errors.BodyMalformedError(
                "The multipart/form-data body has no part named 'file': send each image as one."
            )
        return Body(self._images, self._names, None if self._metadata is None else _parse_metadata(self._metadata))

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._data = bytearray()

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        file_name = options.get(b"filename")
        self._file_name = None if not file_name else file_name.decode("utf-8", "surrogateescape")
        if self._part == "file" and len(self._images) >= self._max_images:
            raise errors.TooManyImagesError(self._max_images)
        if self._part not in ("file", "metadata"):
            raise errors.BodyMalformedError(
                f"The multipart/form-data body has a part named {self._part!r}. "
                "Name a part 'file' (an image) or 'metadata' (JSON)."
            )
        if self._part == "metadata" and self._metadata is not None:
            raise errors.BodyMalformedError("The multipart/form-data body has more than one part named 'metadata'.")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.extend(memoryview(data)[start:end])
        if self._part == "metadata" and len(self._data) > _MAX_METADATA_BYTES:
            raise MetadataError(f"has more than {_MAX_METADATA_BYTES:,} bytes for all images of the request together")

    def _on_part_end(self) -> None:
        if self._part == "file":
            self._images.append(bytes(self._data))
            self._names.append(self._file_name)
        else:
            self._metadata = bytes(self._data)


def _parse_metadata(data: bytes) -> dict[str, Any]:
    try:
        metadata = loads(data)
    except ValueError as exc:
        raise MetadataError(str(exc)) from None
    if not isinstance(metadata, dict):
        raise MetadataError(f"is a JSON {type(metadata).__name__}")
    return metadata
