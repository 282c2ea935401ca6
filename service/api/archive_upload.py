"""Receive an uploaded archive of images, check it, and queue it as a background job.

Guarantees: the size, the duration and the number of uploads are limited; an upload that does not fit on the disk is
rejected before it is received. It is written to disk in chunks; a rejected archive leaves no files, and none of its
images is added. A process that is killed leaves a folder that the next one deletes (see `service.indexing.jobs`).
Out of scope: what the job does with the images (`service.indexing.work`).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request

from index.bulk.archive import count_images
from index.errors import translate_os_error
from model_store.durable import sync
from service.api.upload import UNSPECIFIC_TYPES, announced_length, media_type, read_body
from service.errors import BodyTooLargeError, BodyTypeError, QueueFullError, StorageError, translate_system_error
from service.indexing.archive_import import archive_limits
from service.indexing.job import ARCHIVE, JobInfo, JobKind
from service.settings import Settings
from service.state import State

ARCHIVE_TYPES = (
    "application/zip",
    "application/x-zip-compressed",
    "application/x-tar",
    "application/gzip",
    "application/x-gzip",
    "application/x-bzip2",
    "application/octet-stream",
)
_BUFFER_BYTES = 1 << 20
_SLOWEST_RATE = 50_000  # bytes per second, on average; a slower upload is ended after the time limit of a body
_FREE_BYTES = 64_000_000  # stay free for the catalog, and for logs on the same disk


class Uploads:
    """The running uploads of one application. Use it from the event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        self._expected = 0  # bytes that the running uploads will still write

    @contextmanager
    def running(self, folder: Path, length: int) -> Iterator[Callable[[int], None]]:
        """Count an upload of `length` bytes to `folder`; 0 if unknown. Yields a function for the bytes written so far.

        Raises QueueFullError if too many are running, StorageError if the disk has no space for it.
        """
        if self._running >= self._limit:
            raise QueueFullError("uploads", self._limit, 10)
        free = shutil.disk_usage(folder).free - self._expected
        if free < length + _FREE_BYTES:
            raise StorageError(f"{max(free, 0) / 1e6:,.0f} MB are free, and {(length + _FREE_BYTES) / 1e6:,.0f} needed")
        left = length

        def written(count: int) -> None:
            nonlocal left
            done = min(count, left)
            left -= done
            self._expected -= done

        self._running += 1
        self._expected += length
        try:
            yield written
        finally:
            self._running -= 1
            self._expected -= left


async def receive_archive(request: Request, state: State, kind: JobKind, parameters: Mapping[str, Any]) -> JobInfo:
    """Store the body, check the parameters and all entries of the archive, and queue it as a job.

    Raises BodyTypeError, BodyTooLargeError, BodyTimeoutError, ImageArchiveError, QueueFullError, StorageError,
    IndexFullError, IndexReadOnlyError, ClientGoneError, ParameterError and other errors of the kind of job.
    """
    sent = media_type(request)
    if sent not in (*ARCHIVE_TYPES, *UNSPECIFIC_TYPES):
        raise BodyTypeError(sent, f"Send an archive as one of: {', '.join(ARCHIVE_TYPES)}.")
    jobs, settings = state.jobs, state.settings
    await state.in_index(jobs.check, kind, parameters)
    length = announced_length(request) or 0
    if length > settings.max_archive_bytes:
        raise BodyTooLargeError(settings.max_archive_bytes)
    uploads: Uploads = request.app.state.uploads
    with uploads.running(settings.home, length) as written:
        folder = await asyncio.to_thread(jobs.new_folder)
        try:
            archive = folder / ARCHIVE
            await _store(request, archive, settings, written)
            total = await state.in_index(count_images, archive, archive_limits(settings))
            return await asyncio.to_thread(jobs.accept_archive, kind, parameters, folder, total)
        except BaseException:
            # Not awaited, because this task may be cancelled again.
            state.index_pool.submit(shutil.rmtree, folder, ignore_errors=True)
            raise


async def _store(request: Request, path: Path, settings: Settings, written: Callable[[int], None]) -> None:
    """Write the body to `path`, and sync the file."""
    buffer = bytearray()
    try:
        with path.open("xb") as file:
            async for chunk in read_body(
                request, settings.max_archive_bytes, settings.upload_timeout_s, slowest_rate=_SLOWEST_RATE
            ):
                buffer += chunk
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(file.write, bytes(buffer))
                    written(len(buffer))
                    buffer.clear()
            await asyncio.to_thread(file.write, buffer)
        await asyncio.to_thread(sync, path)
    except OSError as error:
        raise translate_system_error(error) or translate_os_error(error, path.parent) from error
