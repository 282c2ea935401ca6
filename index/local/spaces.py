"""The vector spaces of a local index: one space per model, on disk and, if needed, in memory.

The catalog stores the role of each space on disk. `LoadedSpaces` is the same in memory.

    new, unused --start_migration--> target --finish--> active --another space becomes active--> kept
         ^                             |                 ^                                         |
         |                             |                 +--------- start_migration, finish -------+
         +----- start_migration to another model         |                                         |
         |                                               +--- `open`, if no image has a vector     |
         +------ another space becomes active, unless `keep_previous`; or a second space is kept --+

    active   Search uses it. Added images get a vector in it.
    target   The index is migrating to it. Added images get a vector in it too. `finish` makes it the active space once
             every image that can be embedded has a vector in it, and `switch_now` does so before that.
    kept     It was active before. Added images get no vector in it, so that `finish` can make it active immediately.
    unused   Neither of these: it is not in memory, and `drop_unused` deletes it from disk.

Guarantees: vectors of two models are never compared. Deleting an image deletes its vectors in all spaces. A role
changes on disk first, in one transaction, and in memory before the next commit. If a method raises, no role has
changed. If the process ends during a migration, search uses the active space, and the next migration resumes.
Out of scope: computing vectors (service/indexing/reembedder.py) and choosing the model (service/indexing/versions.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.catalog.images import Change
from index.catalog.spaces import SwitchResult
from index.errors import IndexModelError, IndexSwitchedError, IndexUnavailableError
from index.local.code_builder import CodeBuilder
from index.local.space import SearchSpace
from index.records import IndexOptions, Space, Unembedded, VectorModel, encode_vectors
from index.search.gpu.device import SearchDevice
from index.search.searcher import Searcher


@dataclass(frozen=True, slots=True)
class LoadedSpaces:
    """The vector spaces in memory. It is replaced as a whole, between two commits.

    kept: also None if the kept space was not searched since the start. loading: being read from disk.
    """

    active: SearchSpace | None = None
    target: SearchSpace | None = None
    kept: SearchSpace | None = None
    loading: SearchSpace | None = None

    def __iter__(self) -> Iterator[SearchSpace]:
        seen = {id(each): each for each in (self.active, self.target, self.kept, self.loading) if each is not None}
        return iter(seen.values())


class Spaces:
    """The vector spaces of one index. All methods may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        codes: CodeBuilder,
        *,
        threads: int,
        keep_previous: bool,
        device: SearchDevice | None = None,
    ) -> None:
        """keep_previous: keep the previously active space, on disk and in memory, instead of dropping it.

        device: where the active space is searched; None for the CPU. The CPU searches all other spaces.
        """
        self._folder, self._catalog, self._threads, self._keep_previous = folder, catalog, threads, keep_previous
        self.codes, self._device = codes, device
        self._changing = threading.Lock()  # held while a role changes and while unused vectors are deleted
        self._loaded = LoadedSpaces()  # replaced while the catalog's commit lock is held

    def open(self, options: IndexOptions) -> None:
        """Load the spaces to search, and to migrate to, for the model of the options.

        Raises IndexModelError if images have no vector of this model and neither `switch` nor `migrate` is set.
        """
        spaces, model = self._catalog.spaces(), options.vector_model
        own = next((space for space in spaces if space.fingerprint == model.fingerprint), None)
        active = next((space for space in spaces if space.active), None)
        if own is not None and own.active:
            if any(space.target for space in spaces) and not options.read_only:
                self._catalog.set_target(own.id)  # a migration to another model was interrupted
            self._open_active(own)
            return
        missing = self._catalog.images() if own is None else own.missing_vectors
        searchable = active is not None and active.vectors and not options.switch
        if options.read_only or (searchable and missing and not options.migrate):
            raise IndexModelError(self._folder, active.model if active else "none", model.model, missing)
        if active is not None and searchable and options.migrate:
            self._open_active(active)
            self.start_migration(model)
            return
        own = self._catalog.ensure_space(model.fingerprint, model.model)
        self._catalog.activate_space(own.id, keep=self._keep_previous)
        self._open_active(own)

    def _open_active(self, record: Space) -> None:
        with self._changing, self._load(record) as space:
            self._replace(active=space)
            space.searcher.use_device(self._device)

    @property
    def active(self) -> SearchSpace:
        """The space that is searched."""
        active = self._loaded.active
        if active is None:
            raise IndexUnavailableError(self._folder, "no vector space was opened")
        return active

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors are searched."""
        return self.active.model

    @property
    def target(self) -> VectorModel | None:
        """The model that the index is migrating to, or None."""
        target = self._loaded.target
        return None if target is None else target.model

    @property
    def required(self) -> Sequence[VectorModel]:
        """The models for which every added image needs a vector, the searched one first."""
        return [space.model for space in self.required_spaces]

    @property
    def required_spaces(self) -> Sequence[SearchSpace]:
        """The spaces in which every added image needs a vector, the active one first."""
        loaded = self._loaded
        return [each for each in (loaded.active, loaded.target) if each is not None]

    @property
    def missing(self) -> Spaces:
        """Access to the missing vectors."""
        return self

    @property
    def loaded(self) -> Sequence[SearchSpace]:
        """All spaces in memory."""
        return [*self._loaded]

    @property
    def bytes_in_memory(self) -> int:
        """The memory that all searchers use."""
        return sum(space.searcher.bytes_in_memory for space in self._loaded)

    def space(self, fingerprint: str | None) -> SearchSpace:
        """Return the active or the kept space of a model, loaded if needed; the active one for None.

        Raises IndexModelError if there is none.
        """
        if fingerprint is None:
            return self.active
        loaded = self._loaded  # read once: another thread may replace it
        for space in (loaded.active, loaded.kept):
            if space is not None and fingerprint == space.record.fingerprint:
                return space
        with self._changing:
            record = next((each for each in self._catalog.spaces() if each.fingerprint == fingerprint), None)
            if record is None or not (record.kept or record.active):
                missing = self._catalog.images() if record is None else record.missing_vectors
                raise IndexModelError(self._folder, self.active.record.model, "the requested model", missing)
            with self._load(record) as space:
                if record.kept:
                    self._replace(kept=space)
                return space

    def is_loaded(self, space: SearchSpace) -> bool:
        """Return whether this space is still loaded. The vectors of a replaced space may be deleted during a search."""
        return any(each is space for each in self._loaded)

    def apply(self, change: Change) -> None:
        """Apply a committed change to every in-memory searcher. Called in the writer's thread."""
        for space in self._loaded:
            space.apply(change)
            self.codes.maintain(space)

    def start_migration(self, model: VectorModel) -> None:
        """Migrate to this model from now on; cancel the running migration if it is the searched model."""
        with self._changing:
            record = self._catalog.ensure_space(model.fingerprint, model.model)  # stores the newest name
            with self._load(record) as space:

                def committed(_: None) -> None:
                    space.record = replace(space.record, model=model.model)
                    self._loaded = replace(self._loaded, target=None if space is self._loaded.active else space)

                self._catalog.set_target(record.id, committed)

    def finish(self, model: VectorModel, skipped: frozenset[int] = frozenset()) -> SwitchResult:
        """Search the vectors of `model` if every image has one, except the images with the ids `skipped`."""
        with self._changing:
            space = self._required(model)

            def committed(result: SwitchResult) -> None:
                if result is SwitchResult.DONE:
                    self._switch_to(space)

            return self._catalog.activate_if_complete(
                space.record.id, skipped, keep=self._keep_previous, committed=committed
            )

    def switch_now(self) -> None:
        """Search the target although images have no vector in it. Search finds these once they are embedded."""
        with self._changing:
            target = self._loaded.target
            if target is not None:
                self._catalog.activate_space(
                    target.record.id, keep=self._keep_previous, committed=lambda _: self._switch_to(target)
                )

    def missing_vectors(self, model: VectorModel, after: int, limit: int) -> Sequence[Unembedded]:
        """Return up to `limit` images without a vector of `model`, ordered by id, starting after the id `after`."""
        return self._catalog.unembedded(self._required(model).record.id, after, limit)

    def add_vectors(
        self, model: VectorModel, images: Sequence[Unembedded], vectors: Sequence[NDArray[np.float32]]
    ) -> int:
        """Store the vectors of `images`, except those replaced or deleted meanwhile; return how many were stored."""
        space = self._required(model).record.id
        return self._catalog.add_vectors(space, images, encode_vectors(vectors), self.apply)

    def drop_unused(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Delete the unused spaces. Other threads can write, and change roles, in between."""
        dropped = True
        while dropped and not stopped():
            with self._changing:
                dropped = bool(self._catalog.drop_unused_vectors())
        if not dropped:
            self.codes.remove_unused([space.fingerprint for space in self._catalog.spaces()])

    def describe(self) -> Sequence[Space]:
        """Return every space on disk, oldest first."""
        return self._catalog.spaces()

    def close(self) -> None:
        """Wait for running searches."""
        for space in self._loaded:
            space.searcher.close()

    def _required(self, model: VectorModel) -> SearchSpace:
        """Return the active or target space of a model. Raises IndexSwitchedError if it is neither."""
        for space in self.required_spaces:
            if space.record.fingerprint == model.fingerprint:
                return space
        raise IndexSwitchedError(self._folder, f"to {self.active.record.model}")

    def _switch_to(self, space: SearchSpace) -> None:
        """Search `space` from now on. Called in the writer's thread, so between two commits."""
        active = self._loaded.active
        if space is not active:
            # Searchers of other spaces are not closed: searches may still use them, and their threads end with those.
            self._loaded = LoadedSpaces(active=space, kept=active if self._keep_previous else None)
            if active is not None:
                active.searcher.use_device(None)
            space.searcher.use_device(self._device)

    def _replace(self, **changes: SearchSpace | None) -> None:
        with self._catalog.commit_lock:
            self._loaded = replace(self._loaded, **changes)

    @contextmanager
    def _load(self, record: Space) -> Iterator[SearchSpace]:
        """Read a space into memory unless it is there, so that the block can give it a role; drop it otherwise.

        Other threads can write in the meantime; the space gets their changes too. `_changing` must be held.
        """
        for loaded in self._loaded:
            if loaded.record.id == record.id:
                yield loaded
                return
        space = SearchSpace(record, Searcher(threads=self._threads), pending=[])
        try:
            with Catalog(self._catalog.path, read_only=True) as reader:
                with self._catalog.commit_lock:
                    reader.pin()
                    self._loaded = replace(self._loaded, loading=space)
                self.codes.load(space, reader)
            with self._catalog.commit_lock:
                pending, space.pending = space.pending or [], None
                for change in pending:
                    space.apply(change)
            self.codes.maintain(space)
            yield space
        finally:
            self._replace(loading=None)
            if not self.is_loaded(space):
                space.searcher.close()
