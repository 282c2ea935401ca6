"""Receive an uploaded archive of images, check it, and queue it as a background job.

Guarantees: the size of the upload is limited, and it is written to disk in chunks; a rejected archive leaves no files,
and none of its images is added.
Out of scope: adding the images (`service.indexing.archive_import`).
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from starlette.requests import Request

from index.bulk.archive import count_images
from index.errors import translate_os_error
from model_store.durable import sync
from service.api.upload import UNSPECIFIC_TYPES, media_type, read_body
from service.errors import BodyTypeError
from service.indexing.archive_import import archive_limits
from service.indexing.jobs import ARCHIVE, JobInfo
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


async def receive_archive(request: Request, state: State) -> JobInfo:
    """Store the body, check all entries of the archive, and queue it as a job.

    Raises BodyTypeError, BodyTooLargeError, BodyTimeoutError (if no data arrives for the time limit of a body),
    ImageArchiveError, QueueFullError, IndexFullError, IndexReadOnlyError, ClientGoneError.
    """
    kind = media_type(request)
    if kind not in (*ARCHIVE_TYPES, *UNSPECIFIC_TYPES):
        raise BodyTypeError(kind, f"Send an archive as one of: {', '.join(ARCHIVE_TYPES)}.")
    jobs, settings = state.jobs, state.settings
    jobs.check_capacity()
    folder = await asyncio.to_thread(jobs.new_folder)
    try:
        archive = folder / ARCHIVE
        await _store(request, archive, settings.max_archive_bytes, settings.upload_timeout_s)
        total = await state.in_index(count_images, archive, archive_limits(settings))
        return await asyncio.to_thread(jobs.accept, folder, total)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def _store(request: Request, path: Path, limit: int, timeout_s: float) -> None:
    """Write the body to `path`, and sync the file."""
    buffer = bytearray()
    try:
        with path.open("xb") as file:
            async for chunk in read_body(request, limit, timeout_s, timeout_per_chunk=True):
                buffer += chunk
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(file.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(file.write, buffer)
        await asyncio.to_thread(sync, path)
    except OSError as error:
        raise translate_os_error(error, path.parent) from error
