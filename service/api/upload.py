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
from functools import partial
from typing import Any, Final, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import ClientDisconnect, Request

from index.errors import MetadataError
from index.records import MAX_KEY_LENGTH
from model_store.decoding.formats import format_of
from model_store.errors import ImageFormatError, ImageUnreadableError
from service import errors
from service.api.bodies.body import Body, Example
from service.api.bodies.json_images import check_examples, parse_images, parse_search
from service.api.bounded_json import loads
from service.settings import Settings

# Of the multipart part `metadata`, for all images together.
_MAX_METADATA_BYTES = 1_000_000
_PARSED_INLINE: Final = 64 * 1024
_MAX_KEY_BYTES: Final = 4 * MAX_KEY_LENGTH
_Parsed = TypeVar("_Parsed")
_ACCEPTED = (
    "Send one image as the body, as image/* or application/octet-stream, use multipart/form-data with one part named "
    "'file' for each image, or send application/json with data: URIs."
)


UNSPECIFIC_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types that clients send for any file: none, the general one, and the default of `curl --data-binary`."""


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
async def receive(request: Request, *, metadata: bool = False, search: bool = False) -> AsyncIterator[Body]:
    """Read an image of any Content-Type, multipart/form-data, or JSON with images as data: URIs.

    metadata: JSON may have "metadata". search: the body may have examples and, as JSON, vectors. The bytes count
    towards the budget until the block ends. An empty body is one image of 0 bytes: decoding it fails.
    Raises BodyTooLargeError, TooManyImagesError, BodyTimeoutError, BodyTypeError, BodyMalformedError, MetadataError,
    ParameterError, QueueFullError, ClientGoneError.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    max_images = request.app.state.fc7.settings.max_images
    if kind == b"multipart/form-data":
        try:
            multipart = _MultipartReader(options.get(b"boundary", b""), max_images, search=search)
            async with _buffered(request, multipart.parser.write):
                yield multipart.finish()
        except FormParserError as exc:
            raise errors.BodyMalformedError(f"The multipart/form-data body is malformed: {exc}.") from exc
    else:
        async with receive_raw(request) as data:
            if kind == b"application/json" and not _is_image(data):
                others = frozenset({"metadata"} if metadata else ())
                parse = parse_search if search else partial(parse_images, others=others)
                # The decoded images are in memory too.
                with request.app.state.body_budget.holding(len(data)):
                    yield await parse_json(data, lambda document: parse(document, max_images))
                return
            if not (kind in (b"", b"application/octet-stream") or kind.startswith(b"image/") or _is_image(data)):
                raise errors.BodyTypeError(kind.decode("latin-1"), _ACCEPTED)
            yield Body([data], [None])


async def parse_json(data: bytes, parse: Callable[[Any], _Parsed]) -> _Parsed:
    """Parse a JSON body, a long one in another thread. Raises BodyMalformedError, and what `parse` raises."""

    def work() -> _Parsed:
        try:
            document = loads(data)
        except ValueError as error:
            hint = ". Vectors as base64 count as one value each" if "values" in str(error) else ""
            raise errors.BodyMalformedError(f"The body {error}{hint}.") from None
        return parse(document)

    return await asyncio.to_thread(work) if len(data) > _PARSED_INLINE else work()


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

    search: parts named `positive` and `negative` are examples of one search: a file, or text, which is a key. The
    parser raises FormParserError.
    """

    def __init__(self, boundary: bytes, images: int, *, search: bool) -> None:
        self._max_images = images
        self._examples: dict[str, list[Example]] = {"positive": [], "negative": []} if search else {}
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
        metadata = None if self._metadata is None else _parse_metadata(self._metadata)
        if any(self._examples.values()):
            if self._images:
                raise errors.BodyMalformedError(
                    "The multipart/form-data body has parts named 'file' and examples: send one or the other."
                )
            check_examples(len(self._examples["positive"]), sum(map(len, self._examples.values())))
            return Body([], [], metadata, **self._examples)
        if not self._images:
            raise errors.BodyMalformedError(
                "The multipart/form-data body has no part named 'file': send each image as one."
            )
        return Body(self._images, self._names, metadata)

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
        if self._is_image and self._image_count >= self._max_images:
            raise errors.TooManyImagesError(self._max_images)
        if self._part not in ("file", "metadata", *self._examples):
            examples = ", 'positive' or 'negative' (an example)" if self._examples else ""
            raise errors.BodyMalformedError(
                f"The multipart/form-data body has a part named {self._part!r}. "
                f"Name a part 'file' (an image) or 'metadata' (JSON){examples}."
            )
        if self._part == "metadata" and self._metadata is not None:
            raise errors.BodyMalformedError("The multipart/form-data body has more than one part named 'metadata'.")

    @property
    def _is_image(self) -> bool:
        return self._part == "file" or (self._part in self._examples and self._file_name is not None)

    @property
    def _image_count(self) -> int:
        examples = [example for each in self._examples.values() for example in each]
        return len(self._images) + sum(example.image is not None for example in examples)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.extend(memoryview(data)[start:end])
        if self._part == "metadata" and len(self._data) > _MAX_METADATA_BYTES:
            raise MetadataError(f"has more than {_MAX_METADATA_BYTES:,} bytes for all images of the request together")

    def _on_part_end(self) -> None:
        if self._part == "file":
            self._images.append(bytes(self._data))
            self._names.append(self._file_name)
        elif self._is_image:
            self._examples[self._part].append(Example(image=bytes(self._data)))
        elif self._part in self._examples:
            self._examples[self._part].append(Example(key=_decode_key(self._data)))
        else:
            self._metadata = bytes(self._data)


def _decode_key(data: bytes | bytearray) -> str:
    if len(data) > _MAX_KEY_BYTES:
        raise errors.BodyMalformedError(
            "A part named 'positive' or 'negative' without a file name is a key, but this one has "
            f"{len(data):,} bytes. Give the part of an image a file name."
        )
    return data.decode("utf-8", "surrogateescape")  # the index rejects surrogates


def _parse_metadata(data: bytes) -> dict[str, Any]:
    try:
        metadata = loads(data)
    except ValueError as exc:
        raise MetadataError(str(exc)) from None
    if not isinstance(metadata, dict):
        raise MetadataError(f"is a JSON {type(metadata).__name__}")
    return metadata
