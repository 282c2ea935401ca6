"""Add the images of an uploaded archive to the index, as a background job.

Guarantees: an entry that cannot be added is skipped and listed with its reason, and costs no other entry. Requests have
priority, because a job queues at most one batch of images, and waits while the queue is full. The position in the
archive and the counts are saved after each batch; what a killed process added without saving is counted as added.
Out of scope: receiving the archive (service/api); unpacking to disk; folders of the server (`fc7 index build`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.bulk.add import PreparedBatch, PreparedFile, add_files, prepare_file, skipped_file
from index.bulk.archive import (
    ArchiveEntry,
    ArchiveLimits,
    SkippedEntryError,
    count_images,
    read_archive_metadata,
    read_entries,
)
from index.bulk.metadata import Values, merge, merged
from index.bulk.report import count_kinds
from index.errors import DamagedArchiveError, IndexSwitchedError, InvalidKeyError, MetadataError, VectorError
from index.interface import ImageIndex
from index.records import AddOutcome, check_key
from model_store.decoder.decoder import Decoder
from model_store.errors import RunnerError, ShapeError
from model_store.image_files import SkipKind, Skipped
from service.errors import ModelNotLoadedError, QueueFullError
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import Work
from service.inference.model_pool import ModelPool
from service.settings import Settings

_MAX_ENTRIES = 1_000_000
_MAX_BATCH_BYTES = 64_000_000
_EXAMPLES = 20  # rows of the metadata without an image that are named
_MAX_BATCH_SKIPPED = 1_000
_RETRY_S = 0.2
_RETRIES = 25  # then the job waits, and shows the reason
# Errors of one image, which costs no other image of its batch
_IMAGE_ERRORS = (RunnerError, VectorError, ShapeError, MetadataError, InvalidKeyError)


def archive_limits(settings: Settings) -> ArchiveLimits:
    """Return the limits of an archive."""
    return ArchiveLimits(_MAX_ENTRIES, settings.max_body_bytes, settings.max_archive_bytes)


@dataclass(slots=True)
class _Batch:
    """Entries that are added and saved together. position: of the last one."""

    position: int
    files: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, Values] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    ignored: int = 0

    def is_full(self, images: int) -> bool:
        size = sum(map(len, self.files.values()))
        return len(self.files) >= images or size >= _MAX_BATCH_BYTES or len(self.skipped) >= _MAX_BATCH_SKIPPED


class ArchiveImport(Work):
    """Imports archives into `index`, with the models of `models`."""

    takes_archive = True

    def __init__(
        self, settings: Settings, index: ImageIndex, models: ModelPool, decoder: Decoder, threads: ThreadPoolExecutor
    ) -> None:
        self._settings, self._index, self._models = settings, index, models
        self._decoder, self._threads = decoder, threads

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        """Add the images of the archive after the job's position until all are added; False if `stopped()` was true.

        Raises DamagedArchiveError after everything that could be read was added, ImageArchiveError, OSError, and the
        errors of the index and of the models, TableError.
        """
        archive, limits = store.files.archive(job.id), archive_limits(self._settings)
        if job.total is None:
            job.total = count_images(archive, limits)
            store.update(job.id, total=job.total)
        found = read_archive_metadata(archive, limits)
        metadata = found.rows
        if found.unmatched:
            job.result = {"unmatched_metadata": {"rows": len(found.unmatched), "first": found.unmatched[:_EXAMPLES]}}
        batch, damage = _Batch(job.position), None
        try:
            with closing(read_entries(archive, limits, job.position)) as entries:
                for entry in entries:
                    if stopped():
                        return False
                    # A name that occurs twice is added twice, in turn: the last one counts, as when unpacking.
                    if batch.is_full(self._settings.max_batch) or entry.name in batch.files:
                        if not self._finish(job, store, batch, stopped):
                            return False
                        batch = _Batch(job.position)
                    self._read(entry, batch)
                    if entry.name in metadata:
                        batch.metadata[entry.name] = metadata[entry.name]
        except DamagedArchiveError as error:
            damage = error
        if not self._finish(job, store, batch, stopped):
            return False
        if damage is not None:
            raise damage
        return True

    def _read(self, entry: ArchiveEntry, batch: _Batch) -> None:
        """Read the entry into the batch. Raises DamagedArchiveError; the entry is then counted as skipped."""
        batch.position = entry.position
        try:
            if entry.skip is not None:
                raise entry.skip
            key = check_key(entry.name)
            batch.files[key] = entry.read()
        except SkippedEntryError as error:
            if error.kind is SkipKind.HIDDEN:
                batch.ignored += 1
            else:
                batch.skipped.append(Skipped(entry.name, error.reason, error.kind))
        except InvalidKeyError as error:
            batch.skipped.append(Skipped(entry.name, str(error), SkipKind.INVALID_KEY))
        except DamagedArchiveError as error:
            reason = f"The archive is damaged or cut off inside this entry ({error.reason})."
            batch.skipped.append(Skipped(entry.name, reason, SkipKind.DAMAGED_ENTRY))
            raise

    def _finish(self, job: StoredJob, store: JobStore, batch: _Batch, stopped: Callable[[], bool]) -> bool:
        """Add the images of the batch in one commit, and save the progress. Returns False if stopped before that."""
        known = self._index.lookup(list(batch.files)) if batch.files else {}
        prepare = partial(prepare_file, decoder=self._decoder, keep_picture=self._settings.keep_pictures)
        decoding = [
            (key, self._threads.submit(prepare, key, data, known.get(key)).result) for key, data in batch.files.items()
        ]
        prepared = PreparedBatch.of(decoding)
        skipped = batch.skipped + [skipped_file(key, error) for key, error in prepared.skipped]
        outcomes = [self._outcome_of_known(job.batch, key, known[key]) for key in prepared.unchanged]
        fresh = [file for _, file in prepared.files]
        if fresh:
            store.update(job.id, batch=json.dumps({**job.batch, **{file.key: file.sha256 for file in fresh}}))
            fresh = [self._with_metadata(file, batch.metadata) for file in fresh]
            added = self._add(fresh, skipped, stopped)
            if added is None:
                return False
            outcomes += added
        merge(self._index, batch.metadata, prepared.unchanged)
        job.position, job.batch = batch.position, {}
        job.added += outcomes.count(AddOutcome.ADDED)
        job.replaced += outcomes.count(AddOutcome.REPLACED)
        job.unchanged += outcomes.count(AddOutcome.UNCHANGED)
        job.skipped += len(skipped)
        job.ignored += batch.ignored
        for kind, count in count_kinds(skipped).items():
            job.kinds[kind] = job.kinds.get(kind, 0) + count
        store.save_progress(job, skipped)
        return True

    def _with_metadata(self, file: PreparedFile, metadata: Mapping[str, Values]) -> PreparedFile:
        """Return the file with its metadata of the archive, and what the index has."""
        if file.key not in metadata:
            return file
        return replace(file, metadata=merged(self._index, file.key, metadata[file.key]))

    def _outcome_of_known(self, interrupted: Mapping[str, str], key: str, sha256: str) -> AddOutcome:
        """Return how to count an image that the index already has.

        interrupted: {key: sha256} of the batch that was being added when the job was interrupted. If the image is in
        it, the job added it itself.
        """
        if interrupted.get(key) != sha256:
            return AddOutcome.UNCHANGED
        record = self._index.get(key)
        return AddOutcome.ADDED if record.added == record.updated else AddOutcome.REPLACED

    def _add(
        self, files: Sequence[PreparedFile], skipped: list[Skipped], stopped: Callable[[], bool]
    ) -> list[AddOutcome] | None:
        """Add the files in one commit; if an image fails, one by one, and that one is appended to `skipped`.

        Returns None if stopped before. Waits while the queue is full; embeds again if the index switched its model.
        """
        failures = 0
        while not stopped():
            try:
                return add_files(self._index, files, self._embed)
            except QueueFullError:
                time.sleep(_RETRY_S)
            except (ModelNotLoadedError, IndexSwitchedError):
                failures += 1
                if failures > _RETRIES:
                    raise
                time.sleep(_RETRY_S)
            except _IMAGE_ERRORS as error:
                if len(files) == 1:
                    skipped.append(Skipped(files[0].key, str(error), SkipKind.NOT_EMBEDDED))
                    return []
                outcomes: list[AddOutcome] = []
                for file in files:
                    added = self._add([file], skipped, stopped)
                    if added is None:
                        return None
                    outcomes += added
                return outcomes
        return None

    def _embed(self, fingerprint: str, files: Sequence[PreparedFile]) -> list[NDArray[np.float32]]:
        """Return the fc7 activations of each file, float32 [4096], from the loaded model with this fingerprint."""
        with (
            self._models.use(self._models.find(fingerprint) or fingerprint, background=True) as serving,
            serving.batcher.admit(len(files)) as ticket,
        ):
            rows = [ticket.submit(file.image.pixels) for file in files]
            return [row.result().fc7 for row in rows]
