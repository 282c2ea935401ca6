"""The spaces in memory: a searcher for the one that is searched, and for the one that the index goes over to.

Promises: vectors of two models are never compared; what is added goes to both, what is deleted leaves all; going over
happens between two commits, when every image that can have a vector there has one; until then, and when it is
interrupted, search stays where it is; going back to a kept space is immediate.
Does not: make vectors (service/indexing/reembedder.py has them made), or decide which model is to be followed.
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
from index.local.vector_cache import load
from index.records import Space, Unembedded, encode_vectors
from index.search.searcher import Searcher

SNAPSHOT_FILE = "vectors.snapshot"


class Spaces:
    """The spaces of one index. All methods may be called from any thread."""

    def __init__(self, folder: Path, catalog: Catalog, modes: CodeBuilder, *, threads: int, keep: bool) -> None:
        """keep: a space that was left is kept, on disk and in memory, to go back to at once; else it is dropped."""
        self._folder, self._catalog, self._threads, self._keep = folder, catalog, threads, keep
        self._codes = modes
        self._moving = threading.Lock()
        self._rooms: dict[str, SearchSpace] = {}  # by fingerprint; replaced, never changed, when one comes or goes
        self._active: SearchSpace | None = None
        self._target: SearchSpace | None = None

    def open(self, fingerprint: str, model: str, *, switch: bool, follow: bool, read_only: bool) -> None:
        """Search this model's space if every image has a vector there, or `switch`; or with `follow` go over to it.

        Raises IndexModelError where neither can be.
        """
        spaces = self._catalog.spaces()
        own = next((space for space in spaces if space.fingerprint == fingerprint), None)
        active = next((space for space in spaces if space.active), None)
        if own is None or not own.active:
            missing = own.missing_vectors if own is not None else self._catalog.images()
            if active is not None and active.vectors and missing and not switch:
                if not follow or read_only:
                    raise IndexModelError(self._folder, active.model, model, missing)
                self._active = self._open(active)
                self._target = self._open(self._migrate(fingerprint, model))
                return
            if read_only:
                raise IndexModelError(self._folder, active.model if active else "none", model, missing)
            self._catalog.activate_space(self._catalog.ensure_space(fingerprint, model), keep=self._keep)
            own = next(space for space in self._catalog.spaces() if space.active)
        self._active = self._open(own)

    @property
    def active(self) -> SearchSpace:
        """The space that is searched."""
        if self._active is None:
            raise IndexUnavailableError(self._folder, "it was not entered")
        return self._active

    @property
    def target(self) -> SearchSpace | None:
        """The space that the index goes over to, or None."""
        return self._target

    @property
    def wanted(self) -> Sequence[SearchSpace]:
        """The spaces in which every image is to have a vector, the searched one first."""
        target = self._target
        return [self.active] if target is None else [self.active, target]

    @property
    def bytes_in_memory(self) -> int:
        """The memory of all searchers."""
        return sum(room.searcher.bytes_in_memory for room in self._rooms.values())

    def room(self, fingerprint: str | None) -> SearchSpace:
        """Return a space to search in, filled now if it was kept on disk; the active one for None.

        Raises IndexModelError when images have no vector of this model, or there is no such space.
        """
        active = self.active  # read once: it may be another one the next time
        if fingerprint is None or fingerprint == active.space.fingerprint:
            return active
        with self._moving:  # a space that is left meanwhile must not be opened again: it may be about to be deleted
            space = next((space for space in self._catalog.spaces() if space.fingerprint == fingerprint), None)
            if space is None or not (space.kept or space.active):
                missing = self._catalog.images() if space is None else space.missing_vectors
                raise IndexModelError(self._folder, self.active.space.model, "the model that was asked for", missing)
            return self._open(space)

    def holds(self, room: SearchSpace) -> bool:
        """Tell whether this space is still here; one that was left may be deleted under a search."""
        return self._rooms.get(room.space.fingerprint) is room

    def apply(self, change: Change) -> None:
        """Tell all that is in memory of a commit; runs in the writer's thread."""
        for room in self._rooms.values():
            room.apply(change)
            self._codes.maybe_train(room)

    def start_migration(self, fingerprint: str, model: str) -> bool:
        """Go over to this model's space: at once when it can be (True), else when it is filled (False)."""
        with self._moving:
            self._target = None
            if fingerprint == self.active.space.fingerprint:
                self._catalog.ensure_space(fingerprint, model)  # the newest name of it is shown
                self.active.space = replace(self.active.space, model=model)
                return True
            own = next((space for space in self._catalog.spaces() if space.fingerprint == fingerprint), None)
            complete = own is not None and (own.kept or not own.missing_vectors)
            if complete or not self._catalog.images():
                self._go(self._open(self._made(fingerprint, model)))
                return True
            self._target = self._open(self._migrate(fingerprint, model))
            return False

    def switch_now(self) -> None:
        """Search the space that is followed although images lack vectors there: they are found when they have them."""
        with self._moving:
            if self._target is not None:
                self._go(self._target)

    def missing_vectors(self, room: SearchSpace, after: int, limit: int) -> Sequence[Unembedded]:
        """Return up to `limit` images without a vector in `room`, by id, those after the id `after`."""
        return self._catalog.unembedded(room.space.id, after, limit)

    def add_vectors(
        self, room: SearchSpace, images: Sequence[Unembedded], vectors: Sequence[NDArray[np.float32]]
    ) -> int:
        """Give images their vectors, float32 [4096], in `room`, except those replaced or deleted since."""
        return self._catalog.add_vectors(room.space.id, images, encode_vectors(vectors), self.apply)

    def finish(self, room: SearchSpace, skipped: frozenset[int]) -> SwitchResult:
        """Go over to `room` when every image, but those with the ids `skipped`, has a vector there."""

        def committed(result: SwitchResult) -> None:
            if result is SwitchResult.DONE and room is self._target:
                self._moved(room)

        with self._moving:
            return self._catalog.activate_if_complete(room.space.id, skipped, keep=self._keep, committed=committed)

    def drop_unused(self) -> None:
        """Delete what is neither searched, nor followed, nor kept; others can write in between."""
        self._catalog.drop_unused_spaces()

    def describe(self) -> list[Space]:
        """Return every space on disk, oldest first."""
        return self._catalog.spaces()

    def close(self) -> None:
        """Wait for running searches."""
        for room in self._rooms.values():
            room.searcher.close()

    def _made(self, fingerprint: str, model: str) -> Space:
        number = self._catalog.ensure_space(fingerprint, model)
        return next(space for space in self._catalog.spaces() if space.id == number)

    def _migrate(self, fingerprint: str, model: str) -> Space:
        number = self._catalog.start_migration(fingerprint, model)
        return next(space for space in self._catalog.spaces() if space.id == number)

    def _go(self, room: SearchSpace) -> None:
        self._catalog.activate_space(room.space.id, keep=self._keep, committed=lambda _: self._moved(room))

    def _moved(self, room: SearchSpace) -> None:
        """Search `room` from now on; runs in the writer's thread, so between two commits."""
        before = self.active
        self._active = room
        self._target = None
        # Those that leave are not closed: searches may be running in them, and their threads end with the last one.
        stay = (room, before) if self._keep else (room,)
        self._rooms = {each.space.fingerprint: each for each in stay}

    def _open(self, space: Space) -> SearchSpace:
        """Return the space in memory, its searcher filled while others write."""
        known = self._rooms.get(space.fingerprint)
        if known is not None:
            known.space = space
            return known
        room = SearchSpace(space, Searcher(threads=self._threads), pending=[])
        self._codes.attach(room)
        with Catalog(self._catalog.path, read_only=True) as reader:
            with self._catalog.commit_lock:
                reader.pin()
                self._rooms = {**self._rooms, space.fingerprint: room}
            try:
                room.unsaved = load(room.searcher, reader, space.id, self._folder / SNAPSHOT_FILE, space.fingerprint)
            except BaseException:
                self._rooms = {name: each for name, each in self._rooms.items() if each is not room}
                room.searcher.close()
                raise
        with self._catalog.commit_lock:
            pending, room.pending = room.pending or [], None
            for change in pending:
                room.apply(change)
        self._codes.maybe_train(room)
        return room
