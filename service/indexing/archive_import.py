"""Add the images of an uploaded archive to the index, as a background job.

Guarantees: an image that cannot be read is skipped and listed with its reason; requests have priority, because a job
queues at most one batch of images, and waits while the queue is full.
Out of scope: receiving the archive (service/api); unpacking to disk; folders of the server (`fc7 index build`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bulk.add import PreparedBatch, PreparedFile, add_files, prepare_file
from index.bulk.archive import ArchiveLimits, read_images
from index.bulk.pipeline import batches
from index.bulk.report import count_outcomes
from index.errors import IndexSwitchedError, InvalidKeyError
from index.interface import ImageIndex
from index.records import AddOutcome, check_key
from model_store.decoder.decoder import Decoder
from service.errors import ModelNotLoadedError, QueueFullError
from service.indexing.jobs import ARCHIVE, JobInfo
from service.inference.model_pool import ModelPool
from service.settings import Settings

_MAX_ENTRIES = 1_000_000
_RETRY_S = 0.2


def archive_limits(settings: Settings) -> ArchiveLimits:
    """Return the limits of an archive."""
    return ArchiveLimits(_MAX_ENTRIES, settings.max_body_bytes, settings.max_archive_bytes)


class ArchiveImport:
    """Imports archives into `index`, with the models of `models`. `run` is the `Work` of Jobs."""

    def __init__(
        self, settings: Settings, index: ImageIndex, models: ModelPool, decoder: Decoder, threads: ThreadPoolExecutor
    ) -> None:
        self._settings, self._index, self._models = settings, index, models
        self._decoder, self._threads = decoder, threads

    def run(self, job: JobInfo, folder: Path, stopped: Callable[[], bool]) -> None:
        """Add the images of the job's archive, and count them in `job`, until all are added or `stopped()` is true."""
        for batch in batches(self._read(job, folder / ARCHIVE, stopped), self._settings.max_batch):
            self._add(job, batch, stopped)

    def _read(self, job: JobInfo, archive: Path, stopped: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield (key, bytes) of the images that can be added, and skip the others."""
        for name, data in read_images(archive, archive_limits(self._settings)):
            if stopped():
                return
            try:
                key = check_key(name)
            except InvalidKeyError as error:
                job.skip(name, str(error))
                continue
            if data is None:
                job.skip(key, f"The file has more than {self._settings.max_body_bytes:,} bytes.")
            else:
                yield key, data

    def _add(self, job: JobInfo, batch: Sequence[tuple[str, bytes]], stopped: Callable[[], bool]) -> None:
        """Add the images in one commit. Waits while the queue is full; embeds again if the index switched its model."""
        files = dict(batch)  # if a name occurs twice, the last one counts, as when unpacking
        known = self._index.lookup(list(files))
        prepare = partial(prepare_file, decoder=self._decoder, keep_picture=self._settings.keep_pictures)
        prepared = PreparedBatch.of(
            (key, self._threads.submit(prepare, key, data, known.get(key))) for key, data in files.items()
        )
        for key, reason in prepared.skipped:
            job.skip(key, reason)
        outcomes = [AddOutcome.UNCHANGED] * (len(batch) - len(files) + len(prepared.unchanged))
        fresh = [file for _, file in prepared.files]
        while fresh:
            if stopped():
                return
            try:
                outcomes += add_files(self._index, fresh, self._embed)
                break
            except (QueueFullError, ModelNotLoadedError, IndexSwitchedError):
                time.sleep(_RETRY_S)
        count_outcomes(job, outcomes)

    def _embed(self, fingerprint: str, files: Sequence[PreparedFile]) -> list[NDArray[np.float32]]:
        """Return the fc7 activations of each file, float32 [4096], from the loaded model with this fingerprint."""
        with (
            self._models.use(self._models.find(fingerprint) or fingerprint, background=True) as serving,
            serving.batcher.admit(len(files)) as ticket,
        ):
            rows = [ticket.submit(file.image.pixels) for file in files]
            return [row.result().fc7 for row in rows]
