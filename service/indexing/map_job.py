"""Compute the map of the index, as a background job.

Guarantees: requests use the previous map until the new one is on disk. An interrupted job starts again from the
beginning, and gives the same map.
Out of scope: the computation (index/projection).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from index.interface import ImageIndex
from index.projection.index_map import Method
from index.projection.maps import Maps
from index.projection.tsne import import_opentsne
from model_store.errors import MissingExtraError
from service.indexing.job_store import JobStore, StoredJob
from service.indexing.work import JobParameters, Work


class MapParameters(JobParameters):
    """Parameters of the kind map. method: tsne, which keeps neighbors together, or pca, which takes seconds."""

    method: Method = Method.TSNE


class MapJob(Work):
    """Computes the map of `index` into `maps`."""

    parameters = MapParameters
    permanent = (MissingExtraError,)

    def __init__(self, index: ImageIndex, maps: Maps) -> None:
        self._index, self._maps = index, maps

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise ParameterError, or MissingExtraError if t-SNE is not installed."""
        if MapParameters.model_validate(self.parse(parameters)).method is Method.TSNE:
            import_opentsne()

    def run(self, job: StoredJob, store: JobStore, stopped: Callable[[], bool]) -> bool:
        """Compute the map; False if `stopped()` was true. Raises MissingExtraError, OSError, errors of the index."""
        chosen = MapParameters.model_validate(job.parameters)
        model = self._index.searched.model
        job.total = self._index.stats().vectors
        store.update(job.id, total=job.total)

        def show(share: float) -> None:
            done = round(share * (job.total or 0))
            if done > job.processed:
                job.processed = done
                store.save_progress(job, [])

        job.processed = 0
        made = self._maps.compute(self._index, chosen.method, stopped, show)
        if made is None and stopped():
            return False
        images = 0 if made is None else len(made.rows)
        job.result = {"model": model, "method": Method.PCA if made is None else made.method, "images": images}
        return True
