"""Write the predictions for the images of an uploaded archive to a file, as a background job.

Guarantees: each image has one row, in the order of the archive; an image that cannot be read has a row with the reason,
and is counted as skipped. Requests have priority, as with `ArchiveImport`. Rows in complete parts of the file are not
computed again after a kill. A job uses one version from its start to its end, also if another one is activated.
Out of scope: the format of the file (`index.bulk.prediction_file`), the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from index.bulk.archive import SkippedEntryError, read_entries
from index.bulk.pipeline import batches, run_in_background
from index.bulk.predict import NamedImage, PredictedImage
from index.bulk.prediction_file import Options, PredictionFile
from index.bulk.report import count_kinds
from index.errors import DamagedArchiveError, ResultTooLargeError
from model_store.artifact import Artifact
from model_store.decoder.decoder import Decoder
from model_store.errors import (
    ArtifactError,
    ImageError,
    MissingExtraError,
    ModelNameError,
    ModelNotFoundError,
    RunnerError,
    ShapeError,
)
from model_store.image_files import SkipKind, Skipped
from model_store.prefetch import prefetch
from model_store.table_file import import_pyarrow
from service.errors import ModelNotLoadedError, QueueFullError
from service.indexing.archive_import import archive_limits
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import JobParameters, Work
from service.inference.admission import Prediction
from service.inference.model_pool import ModelPool
from service.settings import Settings

_RETRY_S: Final = 0.2
_RETRIES: Final = 25  # then the job waits, and shows the reason
_Pixels = NDArray[np.uint8]


class ClassifyParameters(JobParameters):
    """Parameters of the kind classify. model: None for the active version at the start of the job."""

    format: Literal["csv", "jsonl", "parquet"] = "csv"
    embeddings: bool = False
    k: int = Field(5, ge=1, le=1000)
    views: Literal[1, 10] = 1
    model: str | None = None

    @field_validator("embeddings")
    @classmethod
    def _fits(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("format") == "csv":
            raise ValueError("false with format=csv. Choose jsonl or parquet for embeddings")
        return value


class _StoppedError(Exception):
    """The job is cancelled, or the server is shutting down."""


@dataclass(slots=True)
class _Progress:
    """What was read since progress was last saved, and the damage at which reading ended."""

    processed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    ignored: int = 0
    damage: DamagedArchiveError | None = None

    def save(self, job: StoredJob, store: JobStore) -> None:
        skipped, self.skipped = self.skipped, []
        job.processed += self.processed
        job.skipped += len(skipped)
        job.ignored += self.ignored
        self.processed = self.ignored = 0
        for kind, count in count_kinds(skipped).items():
            job.kinds[kind] = job.kinds.get(kind, 0) + count
        store.save_progress(job, skipped)

    def count(self, name: str, error: str | None) -> None:
        """Count an image that has a row."""
        if error is None:
            self.processed += 1
        else:
            self.skipped.append(Skipped(name, error))


class ArchiveClassification(Work):
    """Classifies archives with the models of `models`."""

    takes_archive = True
    parameters = ClassifyParameters
    permanent = (ResultTooLargeError, MissingExtraError, ModelNameError, ModelNotFoundError, ArtifactError)

    def __init__(
        self,
        settings: Settings,
        models: ModelPool,
        decoder: Decoder,
        threads: ThreadPoolExecutor,
        find: Callable[[str | None], Artifact],
    ) -> None:
        """find: returns the version with a reference, and the active one for None."""
        self._settings, self._models, self._find = settings, models, find
        self._decoder, self._threads = decoder, threads
        self._batch = min(settings.max_batch, settings.queue_size)

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise ParameterError, MissingExtraError, or an error of the named model."""
        chosen = ClassifyParameters.model_validate(self.parse(parameters))
        if chosen.format == "parquet":
            import_pyarrow()
        self._find(chosen.model)

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        """Classify the images that have no row in a complete part of the file yet; False if `stopped()` was true.

        Raises DamagedArchiveError after everything that could be read was classified, ResultTooLargeError,
        ImageArchiveError, OSError and the errors of the models.
        """
        chosen = ClassifyParameters.model_validate(job.parameters)
        artifact = self._find(chosen.model)
        if chosen.model != artifact.id:
            job.parameters = {**job.parameters, "model": artifact.id}
            store.save_parameters(job)
        target = store.files.result_folder(job.id) / f"result.{chosen.format}"
        options = Options(chosen.k, chosen.embeddings, chosen.views, self._settings.novelty_threshold)
        progress = _Progress()
        if not target.exists():  # otherwise, the process ended between the last row and the end of the job
            store.restart(job)
            limit = self._settings.max_archive_bytes
            try:
                with PredictionFile(target, job.id, artifact, options, max_bytes=limit) as file:
                    images = self._read(store.files.archive(job.id), file.done, progress)
                    for rows in run_in_background(file.add, self._predict(images, artifact, chosen.views, stopped)):
                        for row in rows:
                            progress.count(row.name, row.error)
                        progress.save(job, store)
            except _StoppedError:
                return False
            progress.save(job, store)
        job.result = {"model": artifact.id, "file": f"{job.id}.{chosen.format}"}
        job.result_file = target.name
        if progress.damage is not None:
            raise progress.damage
        return True

    def _read(self, archive: Path, done: Mapping[str, str | None], progress: _Progress) -> Iterator[NamedImage]:
        """Yield the images of the archive that are not `done`. Their bytes are read here, and decoded elsewhere."""
        try:
            with closing(read_entries(archive, archive_limits(self._settings))) as entries:
                for entry in entries:
                    if entry.name in done:
                        progress.count(entry.name, done[entry.name])
                        continue
                    try:
                        if entry.skip is not None:
                            raise entry.skip
                        content = entry.read()
                    except SkippedEntryError as error:
                        if error.kind is SkipKind.HIDDEN:
                            progress.ignored += 1
                        else:
                            progress.skipped.append(Skipped(entry.name, error.reason, error.kind))
                    except DamagedArchiveError as error:
                        reason = f"The archive is damaged or cut off inside this entry ({error.reason})."
                        progress.skipped.append(Skipped(entry.name, reason, SkipKind.DAMAGED_ENTRY))
                        raise
                    else:
                        yield NamedImage(entry.name, partial(bytes, content))
        except DamagedArchiveError as error:
            progress.damage = error

    def _predict(
        self, images: Iterator[NamedImage], artifact: Artifact, views: int, stopped: Callable[[], bool]
    ) -> Iterator[list[PredictedImage]]:
        """Yield the rows of a batch of images; the next ones are decoded meanwhile. Raises _StoppedError."""

        def prepare(image: NamedImage) -> _Pixels:
            return self._decoder.prepare(image.read())

        with prefetch(prepare, images, self._threads, 2 * self._batch) as decoded:
            for batch in batches(decoded, self._batch):
                yield self._predict_batch(batch, artifact, views, stopped)

    def _predict_batch(
        self,
        batch: Sequence[tuple[NamedImage, Future[_Pixels]]],
        artifact: Artifact,
        views: int,
        stopped: Callable[[], bool],
    ) -> list[PredictedImage]:
        pixels: dict[int, _Pixels] = {}
        rows: dict[int, PredictedImage] = {}
        for number, (image, future) in enumerate(batch):
            try:
                pixels[number] = future.result()
            except (OSError, ImageError) as error:
                rows[number] = PredictedImage(image.name, None, None, Skipped.of(image.name, error).reason)
        outcomes = self._run_model(list(pixels.values()), artifact, views, stopped) if pixels else []
        for number, outcome in zip(pixels, outcomes, strict=True):
            name = batch[number][0].name
            if isinstance(outcome, Prediction):
                rows[number] = PredictedImage(name, outcome.probabilities, outcome.fc7, None, outcome.novelty)
            else:
                rows[number] = PredictedImage(name, None, None, str(outcome))
        return [rows[number] for number in range(len(batch))]

    def _run_model(
        self, pixels: Sequence[_Pixels], artifact: Artifact, views: int, stopped: Callable[[], bool]
    ) -> list[Prediction | RunnerError | ShapeError]:
        """Return the prediction of each image, or its error. Waits while the queue is full. Raises _StoppedError."""
        failures = 0
        while not stopped():
            try:
                key = self._models.load(artifact).key
                with (
                    self._models.use(key, background=True) as serving,
                    serving.batcher.admit(len(pixels)) as ticket,
                ):
                    return [_outcome(future) for future in [ticket.submit(each, views) for each in pixels]]
            except QueueFullError:
                time.sleep(_RETRY_S)
            except ModelNotLoadedError:
                failures += 1
                if failures > _RETRIES:
                    raise
                time.sleep(_RETRY_S)
        raise _StoppedError


def _outcome(future: Future[Prediction]) -> Prediction | RunnerError | ShapeError:
    try:
        return future.result()
    except (RunnerError, ShapeError) as error:
        return error
