"""An archive of images into the index, behind the requests: uploaded to disk, looked at, then added in the background.

Promises: the upload is bounded and never held in memory; an archive that must not be taken is refused before anything
of it is added; an image that cannot be read is listed with its reason and skipped; requests go first, because a job
asks for at most one run's worth of places at a time, and waits when there are none.
Does not: unpack to disk, read folders of the server (`fc7 index build` does).
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from index.bulk.archive import ArchiveLimits, Packed, count_images, read_images
from index.errors import IndexMovedError, InvalidKeyError, translate_os_error
from index.records import AddOutcome, NewImage, check_key
from model_store.durable import sync
from model_store.errors import ImageError
from model_store.image import PreparedImage, encode_jpeg, inspect_and_prepare
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    BodyTypeError,
    ClientGoneError,
    ModelNotLoadedError,
    QueueFullError,
)
from service.indexing.jobs import ARCHIVE, JobInfo, Jobs

if TYPE_CHECKING:
    from service.state import Resources, State

TYPES = (
    "application/zip",
    "application/x-tar",
    "application/gzip",
    "application/x-gzip",
    "application/x-bzip2",
    "application/octet-stream",
)
_MOST_ENTRIES = 1_000_000
_BUFFER = 1 << 20
_WAIT_S = 0.2


def archive_limits(state: State | Resources) -> ArchiveLimits:
    """Return what an archive may have, by the settings."""
    return ArchiveLimits(_MOST_ENTRIES, state.settings.max_body_bytes, state.settings.max_archive_bytes)


async def receive_archive(request: Request, state: State, jobs: Jobs) -> JobInfo:
    """Store the body, look at all of its entries, and accept it as a job.

    Raises BodyTypeError, BodyTooLargeError, BodyTimeoutError (of one second's silence after another),
    ImageArchiveError,
    QueueFullError, IndexFullError, IndexReadOnlyError, ClientGoneError; nothing is left of it then.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES:
        raise BodyTypeError(kind, f"Send an archive as one of: {', '.join(TYPES)}.")
    limit = state.settings.max_archive_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLargeError(limit)
    jobs.check_room()
    folder = await asyncio.to_thread(jobs.new_folder)
    try:
        await _store(request, folder / ARCHIVE, limit, state.settings.upload_timeout_s)
        total = await state.in_index(count_images, folder / ARCHIVE, archive_limits(state))
        return await asyncio.to_thread(jobs.accept, folder, total)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def _store(request: Request, path: Path, limit: int, silence_s: float) -> None:
    stream = request.stream()
    count, buffer, more = 0, bytearray(), True
    try:
        with path.open("xb") as file:
            while more:
                try:
                    async with asyncio.timeout(silence_s):
                        chunk = await anext(stream, b"")
                except TimeoutError:
                    raise BodyTimeoutError(silence_s) from None
                except ClientDisconnect:
                    raise ClientGoneError from None
                more = bool(chunk)
                count += len(chunk)
                if count > limit:
                    raise BodyTooLargeError(limit)
                buffer += chunk
                if len(buffer) >= _BUFFER or not more:
                    await asyncio.to_thread(file.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(file.flush)
        await asyncio.to_thread(sync, path)
    except OSError as error:
        raise translate_os_error(error, path.parent) from error


def import_archive(state: Resources, job: JobInfo, folder: Path, stopped: Callable[[], bool]) -> None:
    """Add the images of the job's archive, counting them in `job`, until all are seen or `stopped()`."""
    batch: list[tuple[str, bytes]] = []
    for packed in read_images(folder / ARCHIVE, archive_limits(state)):
        if stopped():
            return
        key = _key(packed, job, state)
        if key is not None and packed.data is not None:
            batch.append((key, packed.data))
        if len(batch) == state.settings.max_batch:
            _add(state, job, batch, stopped)
            batch = []
    if batch and not stopped():
        _add(state, job, batch, stopped)


def _key(packed: Packed, job: JobInfo, state: Resources) -> str | None:
    """Return the image's key; None for one that is skipped."""
    if packed.data is None:
        job.skip(packed.name, f"it has more than {state.settings.max_body_bytes:,} bytes")
        return None
    try:
        return check_key(packed.name)
    except InvalidKeyError as error:
        job.skip(packed.name, str(error))
        return None


def _add(state: Resources, job: JobInfo, batch: list[tuple[str, bytes]], stopped: Callable[[], bool]) -> None:
    """Add some images in one commit."""
    index = state.index
    if index is None:
        return
    files = dict(batch)  # a name that comes twice: the later one counts, as when unpacking
    digests = {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}
    known = index.lookup(list(files))
    unchanged = len(batch) - len(files) + sum(known.get(key) == digest for key, digest in digests.items())
    fresh = {key: data for key, data in files.items() if known.get(key) != digests[key]}
    decoded: dict[str, PreparedImage] = {}
    futures = {
        key: state.decode_pool.submit(inspect_and_prepare, data, max_pixels=state.settings.max_pixels)
        for key, data in fresh.items()
    }
    for key, future in futures.items():
        try:
            decoded[key] = future.result()
        except ImageError as error:
            job.skip(key, str(error))
    outcomes: list[AddOutcome] = []
    while decoded and not outcomes:
        if stopped():
            return
        try:
            wanted = [model.fingerprint for model in index.required]
            vectors = [_embed(state, fingerprint, list(decoded.values())) for fingerprint in wanted]
        except (QueueFullError, ModelNotLoadedError):
            time.sleep(_WAIT_S)
            continue
        images = [
            NewImage(
                key=key,
                sha256=digests[key],
                size=len(fresh[key]),
                width=image.width,
                height=image.height,
                metadata=None,
                picture=encode_jpeg(image.pixels) if state.settings.keep_pictures else None,
                vector=own[0],
                vectors=dict(zip(wanted, own, strict=True)),
            )
            for (key, image), *own in zip(decoded.items(), *vectors, strict=True)
        ]
        with suppress(IndexMovedError):  # embed them again, with the model that the index went over to meanwhile
            outcomes = index.add_many(images)
    job.added += outcomes.count(AddOutcome.ADDED)
    job.replaced += outcomes.count(AddOutcome.REPLACED)
    job.unchanged += unchanged + outcomes.count(AddOutcome.UNCHANGED)
    job.seen += unchanged + len(outcomes)


def _embed(state: Resources, fingerprint: str, images: list[PreparedImage]) -> list[NDArray[np.float32]]:
    """Return each image's fc7 by the loaded model with this fingerprint."""
    with (
        state.models.use(state.models.find(fingerprint) or fingerprint, background=True) as serving,
        serving.batcher.admit(len(images)) as ticket,
    ):
        rows = [ticket.submit(image.pixels) for image in images]
        return [row.result().fc7 for row in rows]
