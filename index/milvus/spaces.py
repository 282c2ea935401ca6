"""The vector spaces of an index on Milvus: one collection per model, one of them searched.

Guarantees: vectors of two models are never compared. During a migration, added and changed images are written to both
collections. Search switches once `fc7 index reembed` has computed all vectors; until then it uses the previous ones.
Out of scope: computing vectors.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from index.catalog.spaces import SwitchResult
from index.errors import IndexModelError, IndexUnavailableError
from index.milvus.client import Milvus
from index.milvus.registry import Registry
from index.milvus.schema import collection_of, image_schema
from index.records import IndexOptions, IndexStats, MilvusAddress, Space, VectorModel


class Spaces:
    """The vector spaces of one index. All methods may be called from any thread, and raise IndexUnreachableError.

    writing: lock that is held while rows are read and written back, so that search never switches in between.
    """

    missing = None  # `fc7 index reembed` computes the missing vectors: otherwise every replica would compute the same

    def __init__(self, milvus: Milvus, *, read_only: bool) -> None:
        """Raises IndexUnavailableError if there is no index to read."""
        self.registry = Registry(milvus, create=not read_only)
        self.writing = threading.Lock()
        self._milvus, self._read_only = milvus, read_only
        self._switching = threading.Lock()
        self._searched: VectorModel | None = None
        self._target: VectorModel | None = None

    def open(self, options: IndexOptions) -> None:
        """Select the collections to search, and to migrate to, for the model of the options.

        Raises IndexModelError if the vectors are of another model and neither `switch` nor `migrate` is set.
        """
        model, active = options.vector_model, self.registry.active
        if active is not None:
            self._milvus.open(self.collection(active), image_schema)
            if active.fingerprint == model.fingerprint:
                self._searched = model
                if active.model != model.model and not self._read_only:
                    self.registry.add_model(model)  # stores the newest name
                return
        count = 0 if active is None else self._milvus.count(self.collection(active))
        if active is not None and count and options.migrate and not options.switch and not self._read_only:
            self._searched = active
            self.start_migration(model)
            return
        if self._read_only or (active is not None and count and not options.switch):
            raise IndexModelError(self._milvus.uri, active.model if active else "none", model.model, count)
        self._milvus.open(self.collection(model), image_schema)
        self.registry.activate(model)
        self._searched = model

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors are searched."""
        if self._searched is None:
            raise IndexUnavailableError(self._milvus.uri, "no vector space was opened")
        return self._searched

    @property
    def target(self) -> VectorModel | None:
        """The model that the index is migrating to, or None."""
        return self._target

    @property
    def required(self) -> Sequence[VectorModel]:
        """The models for which every added image needs a vector, the searched one first."""
        with self._switching:
            return [self.searched] if self._target is None else [self.searched, self._target]

    def describe(self) -> Sequence[Space]:
        """Return the vector spaces that exist, the searched one first."""
        return self.registry.spaces()

    def start_migration(self, model: VectorModel) -> None:
        """Migrate to this model from now on; cancel the running migration if it is the searched model."""
        target = None if model.fingerprint == self.searched.fingerprint else model
        if target is not None:
            self._milvus.open(self.collection(target), image_schema)
            self.registry.add_model(target)
        with self._switching:
            self._target = target

    def finish(self, model: VectorModel, skipped: frozenset[int] = frozenset()) -> SwitchResult:
        """Search the vectors of `model` if `fc7 index reembed` has completed them. `skipped` has no effect."""
        del skipped
        with self.writing:
            active = self.registry.active
            if active is None or active.fingerprint != model.fingerprint:
                return SwitchResult.INCOMPLETE
            with self._switching:
                if self._target == model:
                    self._searched, self._target = model, None
            return SwitchResult.DONE

    def switch_now(self) -> None:
        """Raise IndexModelError: the other replicas still search the vectors of the previous model."""
        searched, target = self.searched, self._target or self.searched
        raise IndexModelError(
            self._milvus.uri, searched.model, target.model, self._milvus.count(self.collection(searched))
        )

    def collection(self, model: VectorModel | None = None) -> str:
        """Return the name of a model's collection; the searched model's by default."""
        return collection_of(self._milvus.name, (model or self.searched).fingerprint)

    def model(self, fingerprint: str | None) -> VectorModel:
        """Return the searched model. Raises IndexModelError if `fingerprint` is of another model."""
        searched = self.searched
        if fingerprint is not None and fingerprint != searched.fingerprint:
            count = self._milvus.count(self.collection(searched))
            raise IndexModelError(self._milvus.uri, searched.model, "the requested model", count)
        return searched


def read_stats_on_milvus(address: MilvusAddress) -> IndexStats:
    """Return the counts of an index, whatever its model. Raises IndexUnavailableError if there is none."""
    with contextlib.closing(Milvus(address)) as milvus:
        active = Registry(milvus).active
        if active is None:
            return stats_of(VectorModel("", ""), 0, "exact")
        collection = collection_of(address.name, active.fingerprint)
        milvus.open(collection, image_schema)
        mode = "exact" if milvus.index_type(collection) == "FLAT" else "fast"
        return stats_of(active, milvus.count(collection), mode)


def stats_of(model: VectorModel, count: int, mode: str) -> IndexStats:
    """Return the counts. The sizes are 0, because only Milvus knows them."""
    return IndexStats(count, count, 0, 0, mode, model.model, model.fingerprint)
