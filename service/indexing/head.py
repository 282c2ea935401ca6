"""Fit the last layer of a version to the labeled images of the index, and publish it: for jobs and the command line.

Guarantees: only stored vectors are used, so no image is embedded. An activation is left to the user. If the process is
killed after the version was published, the job that continues returns that version.
Out of scope: the arithmetic (model_store/head).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import field_validator
from threadpoolctl import threadpool_limits

from index.errors import FilterError, IndexModelError
from index.filters import parse_field, parse_where
from index.interface import ImageIndex
from index.labels import LABEL_FIELD, label_of
from model_store.artifact import Artifact
from model_store.cores import usable_cores
from model_store.errors import ArtifactError, ModelNameError, ModelNotFoundError
from model_store.head.errors import HeadError, UnlabelledError
from model_store.head.fit import FittedHead, fit_head
from model_store.head.publish import publish_head
from model_store.head.regression import StoppedError
from model_store.head.sample import LabelledSample
from model_store.store import ModelStore
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import JobParameters, Work

_STEPS: Final = 100  # a job counts its progress in percent


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """field: metadata field of the labels. where: filters of the images to use. skip_small: as in `fit_head`."""

    field: str = LABEL_FIELD
    where: Sequence[str] = ()
    skip_small: bool = False


@dataclass(frozen=True, slots=True)
class HeadResult:
    """A published head.

    missing_vectors: labeled images without a vector of the model. unusable: images whose value cannot be a label.
    sampled_from: how many labeled images there are, if more than were used. seconds: of all steps.
    """

    artifact: Artifact
    fitted: FittedHead
    missing_vectors: int
    unusable: int
    sampled_from: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        figures = self.fitted.figures.to_dict()
        names = ("top1_error", "top1_error_interval", "majority_class_error", "balanced_accuracy")
        return {
            "model": self.artifact.id,
            "classes": list(self.fitted.head.labels),
            "images": self.fitted.images,
            "missing_vectors": self.missing_vectors,
            "unusable_labels": self.unusable,
            "sampled_from": self.sampled_from,
            "left_out": self.fitted.left_out,
            **{name: figures[name] for name in (*names, "balanced_accuracy_interval", "better_than_baseline")},
            "per_class": figures["per_class"],
            "notes": list(self.fitted.notes),
            "seconds": round(self.seconds, 2),
        }


def fit_and_publish(
    index: ImageIndex,
    store: ModelStore,
    parent: Artifact,
    options: HeadOptions,
    *,
    threads: int | None = None,
    origin: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda _: None,
) -> HeadResult:
    """Fit the last layer of `parent` to the labels of the index, and publish it as the next version of its name.

    threads: of the arithmetic. origin: recorded in the manifest. progress: called with the share that is done.
    Raises UnlabelledError, HeadError, FilterError, StoppedError, and the errors of the index and of publishing.
    """
    started = time.monotonic()
    sample, missing, unusable = LabelledSample(), 0, 0
    batches = index.labelled_vectors(
        options.field, only_labelled=True, where=parse_where(options.where), fingerprint=parent.fingerprint
    )
    for batch in batches:
        if stopped():
            raise StoppedError
        labels = [label_of(value) for value in batch.values]
        usable = [number for number, label in enumerate(labels) if label is not None]
        sample.add(
            [batch.keys[number] for number in usable],
            [label for label in labels if label is not None],
            batch.vectors[usable],
        )
        unusable += len(labels) - len(usable)
        missing += sum(label_of(value) is not None for value in batch.missing)
    if not sample.total:
        waiting = f"the {missing:,} labeled images have no vector of {parent.embedder} yet"
        raise UnlabelledError(options.field, waiting if missing else "no indexed image has a label there")
    with threadpool_limits(threads, user_api="blas"):
        vectors = sample.vectors()
        fitted = fit_head(
            vectors,
            sample.labels,
            known=parent.labels,
            skip_small=options.skip_small,
            stopped=stopped,
            progress=progress,
        )
    source = {
        "field": options.field,
        "where": list(options.where),
        "images": fitted.images,
        "missing_vectors": missing,
        "origin": origin,
    }
    artifact = publish_head(store, parent, fitted, source)
    sampled = sample.total if sample.total > len(sample.labels) else None
    return HeadResult(artifact, fitted, missing, unusable, sampled, time.monotonic() - started)


class HeadParameters(JobParameters):
    """Parameters of the kind head. model: the version to start from; None for the active one when the job starts."""

    model: str | None = None
    field: str = LABEL_FIELD
    where: tuple[str, ...] = ()
    skip_small: bool = False

    @field_validator("field")
    @classmethod
    def _is_field(cls, value: str) -> str:
        try:
            parse_field(value)
        except FilterError as error:
            raise ValueError(f"the name of a metadata field, such as {LABEL_FIELD} ({error})") from error
        return value


class HeadFit(Work):
    """Fits and publishes heads."""

    parameters = HeadParameters
    permanent = (HeadError, FilterError, IndexModelError, ModelNameError, ModelNotFoundError, ArtifactError)

    def __init__(self, index: ImageIndex, store: ModelStore, find: Callable[[str | None], Artifact]) -> None:
        """find: returns the version with a reference, and the active one for None."""
        self._index, self._store, self._find = index, store, find

    def check(self, parameters: Any) -> None:
        """Raise ParameterError, FilterError for a malformed filter, or an error of the named model."""
        chosen = HeadParameters.model_validate(self.parse(parameters))
        parse_where(chosen.where)
        self._find(chosen.model)

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        """Fit and publish; False if `stopped()` became true before. Raises the errors of `fit_and_publish`."""
        chosen = HeadParameters.model_validate(job.parameters)
        origin = f"job {job.id}"
        published = [each for each in self._store.list() if _origin_of(each) == origin]
        if published:  # the process ended before the job did
            job.result = {"model": published[0].id, "classes": list(published[0].labels)}
            return True
        job.total, job.processed = _STEPS, 0
        options = HeadOptions(chosen.field, chosen.where, chosen.skip_small)

        def progress(share: float) -> None:
            job.processed = int(share * (_STEPS - 1))
            store.save_progress(job, [])

        try:
            result = fit_and_publish(
                self._index,
                self._store,
                self._find(chosen.model),
                options,
                threads=max(1, usable_cores() // 2),  # requests need the others
                origin=origin,
                stopped=stopped,
                progress=progress,
            )
        except StoppedError:
            return False
        job.processed = _STEPS
        store.save_progress(job, [])
        job.result = result.to_dict()
        return True


def _origin_of(artifact: Artifact) -> Any:
    head = artifact.manifest.recipe.get("head")
    return head.get("origin") if isinstance(head, dict) else None
