"""The vector spaces of an index on Milvus: one collection per model, one of them searched.

Guarantees: vectors of two models are never compared. Every replica follows a switch within 5 seconds of use, whatever
model it serves. A change is acknowledged only if `confirm` found no switch after it was written. Changes that were
paused by a switch are possible again a minute after its process died.
Out of scope: computing vectors; a change that takes longer than a minute (it is not acknowledged).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from index.catalog.spaces import SwitchResult
from index.errors import IndexModelError, IndexPausedError, IndexSwitchedError, IndexUnavailableError
from index.milvus.aliases import Aliases, Searched
from index.milvus.client import Milvus
from index.milvus.registry import Registry
from index.milvus.schema import OUTDATED, collection_of, image_schema
from index.records import IndexOptions, IndexStats, MilvusAddress, Space, VectorModel

_REFRESH_S = 5.0
_POLL_S = 0.05
_DELETE_BATCH = 500
_DEAD_AFTER_S = 60.0
_MAX_CHANGE_S = 60.0


class Spaces:
    """The vector spaces of one index. All methods may be called from any thread, and raise IndexUnreachableError."""

    missing = None  # `fc7 index reembed` computes the missing vectors: otherwise every replica would compute the same

    def __init__(self, milvus: Milvus, *, read_only: bool) -> None:
        """Raises IndexUnavailableError if there is no index to read."""
        self.registry = Registry(milvus, create=not read_only)
        self._aliases = Aliases(milvus)
        self._milvus, self._read_only = milvus, read_only
        self._adopting = threading.Lock()
        self._searched: VectorModel | None = None
        self._target: VectorModel | None = None
        self._refreshed = -_REFRESH_S  # time of the last read of the aliases
        self._last_beat = ("", 0.0)  # heartbeat of the process that paused changes, and when it was first seen

    def open(self, options: IndexOptions) -> None:
        """Select the collections to search, and to migrate to, for the model of the options.

        Raises IndexModelError if the vectors are of another model and neither `switch` nor `migrate` is set.
        """
        model, state = options.vector_model, self._aliases.read()
        if state is None:
            if self._read_only:
                raise IndexUnavailableError(self._milvus.uri, "it has no images; add some with fc7 index build DIR")
            first = self.registry.searched_in_format_0 or model
            self._create(first)
            self._aliases.resume(self.collection(first))
        searched, _ = self._follow()
        if searched.fingerprint == model.fingerprint:
            if searched.model != model.model and not self._read_only:
                self.registry.add_model(model)  # stores the newest name
                self._searched = model
            return
        count = self._milvus.count(self.collection())
        if self._read_only or (count and not options.switch and not options.migrate):
            raise IndexModelError(self._milvus.uri, searched.model, model.model, count)
        self.start_migration(model)
        done = self._switch(model, empty=False) if options.switch else self.finish(model) is SwitchResult.DONE
        if not done and not options.migrate:
            raise IndexModelError(self._milvus.uri, searched.model, model.model, count)

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
        """The searched model. `fc7 index reembed` computes the vectors of all others."""
        return [self.searched]

    def describe(self) -> Sequence[Space]:
        """Return the vector spaces that exist, the searched one first."""
        self.refresh()
        return self.registry.spaces(self.searched)

    def start_migration(self, model: VectorModel) -> None:
        """Migrate to this model from now on; cancel the running migration if it is the searched model."""
        if model.fingerprint == self.searched.fingerprint:
            self._target = None
            return
        self._create(model)
        self._target = model

    def finish(self, model: VectorModel, skipped: frozenset[int] = frozenset()) -> SwitchResult:
        """Search the vectors of `model` if `fc7 index reembed` has completed them. `skipped` has no effect.

        Raises IndexSwitchedError if it is neither the target nor searched.
        """
        del skipped
        if self._follow()[0].fingerprint == model.fingerprint:
            return SwitchResult.DONE
        if self._target is None or self._target.fingerprint != model.fingerprint:
            raise IndexSwitchedError(self._milvus.uri, f"it no longer migrates to {model.model}")
        if self._milvus.count(self.collection()) or not self._switch(model, empty=True):
            return SwitchResult.INCOMPLETE
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
        self.refresh()
        searched = self.searched
        if fingerprint is not None and fingerprint != searched.fingerprint:
            count = self._milvus.count(self.collection(searched))
            raise IndexModelError(self._milvus.uri, searched.model, "the requested model", count)
        return searched

    # --- switches by other processes ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Follow a switch of another process, unless the last one was checked less than 5 seconds ago.

        Raises IndexUnavailableError if the searched collection was dropped.
        """
        if time.monotonic() - self._refreshed >= _REFRESH_S:
            self._follow()

    def _follow(self) -> tuple[VectorModel, Searched]:
        """Read the aliases, and search the collection that they name. Returns its model, and what was read."""
        state = self._aliases.read()
        if state is None:
            raise IndexUnavailableError(
                self._milvus.uri, "its searched collection was dropped; restore it, or index the images again"
            )
        with self._adopting:
            model = self._searched
            if model is None or self.collection(model) != state.collection:
                self._milvus.open(state.collection, image_schema)
                model = self.registry.model(state.collection)
                if self._target is not None and self._target.fingerprint == model.fingerprint:
                    model, self._target = self._target, None
                self._searched = model
            self._refreshed = time.monotonic()
            if state.writable:
                self._last_beat = ("", 0.0)
        return model, state

    def wait_until_writable(self) -> VectorModel:
        """Return the searched model once changes of its collection are allowed.

        Raises IndexPausedError if they are not allowed within the time limit of a call.
        """
        deadline = time.monotonic() + self._milvus.timeout_s
        while True:
            model, state = self._follow()
            if state.writable:
                return model
            self._resume_if_dead(state)
            if time.monotonic() > deadline:
                raise IndexPausedError(
                    self._milvus.uri, f"if fc7 index reembed was killed, run it again or wait {_DEAD_AFTER_S:.0f} s"
                )
            time.sleep(_POLL_S)

    def confirm(self, model: VectorModel, started: float) -> bool:
        """Return whether a change written to the collection of `model` will be kept; if not, it must be made again.

        started: time.monotonic() before `wait_until_writable` returned `model`. Raises IndexPausedError.
        """
        in_time = time.monotonic() - started < _MAX_CHANGE_S
        return self.wait_until_writable().fingerprint == model.fingerprint and in_time

    def _resume_if_dead(self, paused: Searched) -> None:
        """Allow changes again if the process that paused them has not been heard of for a minute."""
        beat, now = self.registry.heartbeat, time.monotonic()
        known, since = self._last_beat
        if not since or beat != known:
            self._last_beat = (beat, now)
        elif now - since > _DEAD_AFTER_S:
            self._aliases.resume(paused.collection)

    def _create(self, model: VectorModel) -> None:
        self._milvus.open(self.collection(model), image_schema)
        self.registry.add_model(model)

    def _switch(self, model: VectorModel, *, empty: bool) -> bool:
        """Search the vectors of `model` for every replica, with no images; with `empty`, only if there are none now."""
        source, target = self.collection(), self.collection(model)
        self._aliases.pause(source)
        switch = not empty or not self._milvus.count(source)
        if switch:  # the target may have images that were deleted after it was searched the last time
            for rows in self._milvus.pages(target, ["id"], size=_DELETE_BATCH):
                self._milvus.delete(target, [row["id"] for row in rows])
        self._aliases.resume(target if switch else source)
        return self._follow()[0].fingerprint == model.fingerprint


def read_stats_on_milvus(address: MilvusAddress) -> IndexStats:
    """Return the counts of an index, whatever its model. Raises IndexUnavailableError if there is none."""
    with contextlib.closing(Milvus(address)) as milvus:
        registry, searched = Registry(milvus), Aliases(milvus).read()
        if searched is None:
            return stats_of(VectorModel("", ""), 0, "exact", 0)
        collection = searched.collection
        milvus.open(collection, image_schema)
        mode = "exact" if milvus.index_type(collection) == "FLAT" else "fast"
        outdated = milvus.count(collection, OUTDATED)
        return stats_of(registry.model(collection), milvus.count(collection), mode, outdated)


def stats_of(model: VectorModel, count: int, mode: str, outdated: int) -> IndexStats:
    """Return the counts. The sizes are 0, because only Milvus knows them."""
    return IndexStats(count, count, 0, 0, mode, model.model, model.fingerprint, outdated)
