"""The vector spaces of a local index: one space per model, on disk and, if needed, in memory.

A vector space is in one of four states. The catalog stores the state on disk.

    active   Search uses it. Added images get a vector in it.
    target   The index is migrating to it. Added images get a vector in it too.
    kept     It was active before, and is kept for an immediate rollback. Added images get no vector in it.
    unused   Any other space. `drop_unused` deletes it.

    new ----> target    start_migration
    new ----> active    start_migration, if the index is empty; or the index is opened with `switch`
    target -> active    finish, once every image that can be embedded has a vector; or switch_now
    kept ---> active    start_migration
    active -> kept      another space becomes active and `keep_previous` is set (the space kept so far becomes unused)
    active -> unused    another space becomes active and `keep_previous` is not set
    target -> unused    start_migration to a third model

Guarantees: vectors of two models are never compared. Deleting an image deletes its vectors in all spaces. The active
space changes between two commits. Until then, and if the migration is interrupted, search uses the previous space.
Out of scope: computing vectors (service/indexing/reembedder.py) and choosing the model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.catalog.images import Change
from index.catalog.spaces import SwitchResult
from index.errors import IndexModelError, IndexUnavailableError
from index.local.code_builder import CodeBuilder
from index.local.space import SearchSpace
from index.local.vector_cache import CACHE_FILE, load_vectors
from index.records import IndexOptions, Space, Unembedded, VectorModel, encode_vectors
from index.search.searcher import Searcher


class Spaces:
    """The vector spaces of one index. All methods may be called from any thread."""

    def __init__(
        self, folder: Path, catalog: Catalog, codes: CodeBuilder, *, threads: int, keep_previous: bool
    ) -> None:
        """keep_previous: keep the previously active space, on disk and in memory, instead of dropping it."""
        self._folder, self._catalog, self._threads, self._keep_previous = folder, catalog, threads, keep_previous
        self.codes = codes
        self._switching = threading.Lock()
        self._loaded: dict[str, SearchSpace] = {}  # by fingerprint; replaced as a whole, never modified
        self._active: SearchSpace | None = None
        self._target: SearchSpace | None = None

    def open(self, options: IndexOptions) -> None:
        """Load the spaces to search, and to migrate to, for the model of the options.

        Raises IndexModelError if images have no vector of this model and neither `switch` nor `migrate` is set.
        """
        spaces = self._catalog.spaces()
        model = options.vector_model
        own = next((space for space in spaces if space.fingerprint == model.fingerprint), None)
        active = next((space for space in spaces if space.active), None)
        if own is None or not own.active:
            missing = own.missing_vectors if own is not None else self._catalog.images()
            if active is not None and active.vectors and missing and not options.switch:
                if not options.migrate or options.read_only:
                    raise IndexModelError(self._folder, active.model, model.model, missing)
                self._active = self._load(active)
                self._target = self._load_target(model)
                return
            if options.read_only:
                raise IndexModelError(self._folder, active.model if active else "none", model.model, missing)
            own = self._catalog.ensure_space(model.fingerprint, model.model)
            self._catalog.activate_space(own.id, keep=self._keep_previous)
        self._active = self._load(own)

    @property
    def active(self) -> SearchSpace:
        """The space that is searched."""
        if self._active is None:
            raise IndexUnavailableError(self._folder, "no vector space was opened")
        return self._active

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors are searched."""
        return self.active.model

    @property
    def target(self) -> VectorModel | None:
        """The model that the index is migrating to, or None."""
        target = self._target
        return None if target is None else target.model

    @property
    def required(self) -> Sequence[VectorModel]:
        """The models for which every added image needs a vector, the searched one first."""
        return [space.model for space in self.required_spaces]

    @property
    def required_spaces(self) -> Sequence[SearchSpace]:
        """The spaces in which every added image needs a vector, the active one first."""
        target = self._target
        return [self.active] if target is None else [self.active, target]

    @property
    def missing(self) -> Spaces:
        """Access to the missing vectors."""
        return self

    @property
    def bytes_in_memory(self) -> int:
        """The memory that all searchers use."""
        return sum(space.searcher.bytes_in_memory for space in self._loaded.values())

    def space(self, fingerprint: str | None) -> SearchSpace:
        """Return the active or the kept space of a model, loaded if needed; the active one for None.

        Raises IndexModelError if there is none.
        """
        active = self.active  # read once: another thread may switch to another space
        if fingerprint is None or fingerprint == active.record.fingerprint:
            return active
        with self._switching:  # a space that was just replaced must not be loaded again: it may be deleted soon
            record = self._find(fingerprint)
            if record is None or not (record.kept or record.active):
                missing = self._catalog.images() if record is None else record.missing_vectors
                raise IndexModelError(self._folder, self.active.record.model, "the requested model", missing)
            return self._load(record)

    def is_loaded(self, space: SearchSpace) -> bool:
        """Return whether this space is still loaded. The vectors of a replaced space may be deleted during a search."""
        return self._loaded.get(space.record.fingerprint) is space

    def apply(self, change: Change) -> None:
        """Apply a committed change to every in-memory searcher. Called in the writer's thread."""
        for space in self._loaded.values():
            space.apply(change)
            self.codes.maybe_train(space)

    def start_migration(self, model: VectorModel) -> bool:
        """Start to migrate to this model. Returns True if its vectors are complete and search uses them already."""
        with self._switching:
            self._target = None
            own = self._find(model.fingerprint)
            complete = own is not None and (own.active or own.kept or not own.missing_vectors)
            if not complete and self._catalog.images():
                self._target = self._load_target(model)
                return False
            own = self._catalog.ensure_space(model.fingerprint, model.model)  # stores the newest name
            if own.active:
                self.active.record = replace(self.active.record, model=model.model)
            else:
                self._activate(self._load(own))
            return True

    def switch_now(self) -> None:
        """Search the target although images have no vector in it. Search finds these once they are embedded."""
        with self._switching:
            if self._target is not None:
                self._activate(self._target)

    def missing_vectors(self, model: VectorModel, after: int, limit: int) -> Sequence[Unembedded]:
        """Return up to `limit` images without a vector of `model`, ordered by id, starting after the id `after`."""
        return self._catalog.unembedded(self._loaded[model.fingerprint].record.id, after, limit)

    def add_vectors(
        self, model: VectorModel, images: Sequence[Unembedded], vectors: Sequence[NDArray[np.float32]]
    ) -> int:
        """Store the vectors of `images`, except those replaced or deleted meanwhile; return how many were stored."""
        space = self._loaded[model.fingerprint].record.id
        return self._catalog.add_vectors(space, images, encode_vectors(vectors), self.apply)

    def finish(self, model: VectorModel, skipped: frozenset[int] = frozenset()) -> SwitchResult:
        """Search the vectors of `model` if every image has one, except the images with the ids `skipped`."""
        space = self._loaded[model.fingerprint]

        def committed(result: SwitchResult) -> None:
            if result is SwitchResult.DONE and space is self._target:
                self._switch_to(space)

        with self._switching:
            return self._catalog.activate_if_complete(
                space.record.id, skipped, keep=self._keep_previous, committed=committed
            )

    def drop_unused(self) -> None:
        """Delete the unused spaces. Other threads can write in between."""
        self._catalog.drop_unused_spaces()

    def describe(self) -> Sequence[Space]:
        """Return every space on disk, oldest first."""
        return self._catalog.spaces()

    def close(self) -> None:
        """Wait for running searches."""
        for space in self._loaded.values():
            space.searcher.close()

    def _find(self, fingerprint: str) -> Space | None:
        return next((space for space in self._catalog.spaces() if space.fingerprint == fingerprint), None)

    def _load_target(self, model: VectorModel) -> SearchSpace:
        """Store that the index is migrating to this model, and load its space."""
        return self._load(self._catalog.start_migration(model.fingerprint, model.model))

    def _activate(self, space: SearchSpace) -> None:
        self._catalog.activate_space(
            space.record.id, keep=self._keep_previous, committed=lambda _: self._switch_to(space)
        )

    def _switch_to(self, space: SearchSpace) -> None:
        """Search `space` from now on. Called in the writer's thread, so between two commits."""
        previous = self.active
        self._active = space
        self._target = None
        # The searchers of other spaces are not closed: searches may still use them, and their threads end with those.
        loaded = (space, previous) if self._keep_previous else (space,)
        self._loaded = {each.record.fingerprint: each for each in loaded}

    def _load(self, record: Space) -> SearchSpace:
        """Return a space in memory, its searcher filled. Other threads can write in the meantime."""
        loaded = self._loaded.get(record.fingerprint)
        if loaded is not None:
            loaded.record = record
            return loaded
        space = SearchSpace(record, Searcher(threads=self._threads), pending=[])
        self.codes.attach(space)
        with Catalog(self._catalog.path, read_only=True) as reader:
            with self._catalog.commit_lock:
                reader.pin()
                self._loaded = {**self._loaded, record.fingerprint: space}
            try:
                space.uncached = load_vectors(
                    space.searcher, reader, record.id, self._folder / CACHE_FILE, record.fingerprint
                )
            except BaseException:
                self._loaded = {name: each for name, each in self._loaded.items() if each is not space}
                space.searcher.close()
                raise
        with self._catalog.commit_lock:
            pending, space.pending = space.pending or [], None
            for change in pending:
                space.apply(change)
        self.codes.maybe_train(space)
        return space
