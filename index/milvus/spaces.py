"""Which collection of an index on Milvus is searched, and which one it is to go over to.

Promises: vectors of two models are never compared; what is added and changed goes to both; going over happens when
`fc7 index reembed` has made all vectors, and until then search stays where it is.
Does not: make vectors.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from index.errors import IndexModelError, IndexUnavailableError
from index.milvus.client import Milvus
from index.milvus.registry import Meta
from index.milvus.schema import collection_of, image_schema
from index.records import IndexStats, VectorModel


class Rooms:
    """The collections of one index. All methods may be called from any thread, and raise IndexUnreachableError."""

    def __init__(self, milvus: Milvus, name: str, *, read_only: bool) -> None:
        self.meta = Meta(milvus, name)
        self._milvus, self._name, self._read_only = milvus, name, read_only
        self._moving = threading.Lock()
        self._searched: VectorModel | None = None
        self._target: VectorModel | None = None

    def open(self, wanted: VectorModel, *, switch: bool, follow: bool) -> None:
        """Search this model's vectors if the index is of it or empty, or `switch`; or with `follow` go over to them.

        Raises IndexModelError where neither can be, IndexUnavailableError when there is no index to read.
        """
        if self._read_only:
            check_exists(self.meta, self._milvus.place, self._name)
        self.meta.open()
        active = self.meta.active
        if active is not None:
            self._milvus.open(self.collection(active), image_schema)
            if active.fingerprint == wanted.fingerprint:
                self._searched = wanted
                if active.model != wanted.model and not self._read_only:
                    self.meta.note_model(wanted)  # the newest name of it is shown
                return
        missing = 0 if active is None else self._milvus.count(self.collection(active))
        if active is not None and missing and follow and not switch and not self._read_only:
            self._searched = active
            self.start_migration(wanted)
            return
        if self._read_only or (active is not None and missing and not switch):
            raise IndexModelError(self._milvus.place, active.model if active else "none", wanted.model, missing)
        self._milvus.open(self.collection(wanted), image_schema)
        self.meta.activate(wanted)
        self._searched = wanted

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors search compares."""
        if self._searched is None:
            raise IndexUnavailableError(self._milvus.place, "it was not entered")
        return self._searched

    @property
    def target(self) -> VectorModel | None:
        """The model that the index is to go over to, or None."""
        return self._target

    @property
    def wanted(self) -> Sequence[VectorModel]:
        """The models of which an image that is added is to have a vector, the searched one first."""
        with self._moving:
            return [self.searched] if self._target is None else [self.searched, self._target]

    def start_migration(self, model: VectorModel) -> bool:
        """Go over to this model: at once (True) when all its vectors are made, else at an `advance`."""
        with self._moving:
            self._target = None
        if model.fingerprint == self.searched.fingerprint:
            return True
        self._milvus.open(self.collection(model), image_schema)
        self.meta.note_model(model)
        with self._moving:
            self._target = model
        return self.advance()

    def advance(self) -> bool:
        """Go over to the model that is followed, if all its vectors are made; tell whether."""
        target, active = self._target, self.meta.active
        if target is None or active is None or active.fingerprint != target.fingerprint:
            return False
        with self._moving:
            self._searched, self._target = target, None
        return True

    def collection(self, model: VectorModel | None = None) -> str:
        """Return the name of the collection of a model, the searched one's by default."""
        return collection_of(self._name, (model or self.searched).fingerprint)

    def model(self, fingerprint: str | None) -> VectorModel:
        """Return the model that is searched, if it is this one. Raises IndexModelError."""
        searched = self.searched
        if fingerprint is not None and fingerprint != searched.fingerprint:
            found = self._milvus.count(self.collection(searched))
            raise IndexModelError(self._milvus.place, searched.model, "the model that was asked for", found)
        return searched


def check_exists(meta: Meta, place: str, name: str) -> None:
    """Raise IndexUnavailableError when there is no index of this name."""
    if not meta.exists():
        raise IndexUnavailableError(place, f"there is none of the name {name}: fc7 index build DIR")


def read_stats_on_milvus(uri: str, token: str | None, *, name: str, timeout_s: float) -> IndexStats:
    """Return the counts of an index, whatever its model. Raises IndexUnavailableError when there is none."""
    with contextlib.closing(Milvus(uri, token, timeout_s)) as milvus:
        meta = Meta(milvus, name)
        check_exists(meta, milvus.place, name)
        meta.open()
        active = meta.active
        if active is None:
            return stats_of(VectorModel("", ""), 0, "exact")
        collection = collection_of(name, active.fingerprint)
        milvus.open(collection, image_schema)
        return stats_of(
            active, milvus.count(collection), "exact" if milvus.index_type(collection) == "FLAT" else "fast"
        )


def stats_of(model: VectorModel, count: int, mode: str) -> IndexStats:
    """Return the counts; the sizes are Milvus's own to know, and 0 here."""
    return IndexStats(count, count, 0, 0, mode, model.model, model.fingerprint)
