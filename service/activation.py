"""Serve another version: loaded, verified and warmed up beside the one that answers, then switched between requests.

Promises: one activation at a time; when any step fails the version before goes on answering, on disk as in memory, and
the error says why; the index follows in the background, and search uses the model of its vectors until it has.
Does not: know HTTP, publish or remove versions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from index.errors import ImageIndexError, IndexModelError
from index.interface import ImageIndex
from index.local.index import LocalImageIndex
from index.local.spaces import Spaces
from index.milvus.index import MilvusImageIndex
from index.records import VectorModel
from model_store.artifact import Artifact
from model_store.errors import Fc7Error, NoActiveModelError, NoPreviousModelError
from service.errors import ActivationRunningError
from service.following import Follower
from service.shared import Mover

if TYPE_CHECKING:
    from service.state import State


@dataclass(frozen=True, slots=True)
class Activated:
    """What an activation did: the versions ("solar:2") that answer now and did before; seconds it took."""

    model: Artifact
    before: str | None
    seconds: float


class Activator:
    """Switches the versions of one service. All methods may be called from any thread."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._busy = threading.Lock()
        self._with = ""

    def activate(self, name: str, version: int) -> Activated:
        """Serve this version. Raises ActivationRunningError, ModelNotFoundError and whatever a step raises."""
        store = self._state.store
        return self._switch(
            f"{name}:{version}",
            lambda: store.get(name, version, verify=False),
            lambda: store.activate(name, version),
        )

    def rollback(self) -> Activated:
        """Serve the version that was active before. Raises NoPreviousModelError, and as `activate` does."""
        store = self._state.store

        def previous() -> Artifact:
            active = store.active()
            if active is None:
                raise NoActiveModelError
            if active.previous is None:
                raise NoPreviousModelError
            return store.get(active.previous.name, active.previous.version, verify=False)

        return self._switch("the version before", previous, store.rollback)

    @property
    def running(self) -> str | None:
        """What is being activated now, or None."""
        return self._with if self._busy.locked() else None

    def close(self) -> None:
        """Wait for an activation that runs, and let none begin."""
        self._busy.acquire()

    def _switch(self, what: str, find: Callable[[], Artifact], write: Callable[[], Artifact]) -> Activated:
        if not self._busy.acquire(blocking=False):
            raise ActivationRunningError(self._with)
        self._with = what
        started = time.monotonic()
        try:
            models, before = self._state.models, self._state.served
            artifact = find()
            was_loaded = models.get(artifact.id) is not None
            try:
                models.load(artifact, beyond_limit=True)
                write()
            except BaseException:
                if not was_loaded:
                    models.retire(artifact.id)
                raise
            if artifact.id != before:
                self._state.answer_with(artifact)
            seconds = time.monotonic() - started
            self._state.log.info("activated", model=artifact.id, before=before, seconds=round(seconds, 2))
            return Activated(artifact, before, seconds)
        finally:
            self._busy.release()


class IndexKeeper:
    """Keeps the index with the model: which loaded version search uses, and the following of a new one."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.follower: Follower | None = None
        self._spaces: Spaces | None = None
        self._shared: MilvusImageIndex | None = None
        self._mover: Mover | None = None
        self.note = ""

    def begin(self, index: ImageIndex, artifact: Artifact) -> None:
        """Follow the active version from the start of the service on; load the one of the vectors beside it.

        Raises IndexModelError when a shared index has vectors of a model that is not published here.
        """
        if isinstance(index, MilvusImageIndex):
            self._begin_shared(index, artifact)
        if not isinstance(index, LocalImageIndex):
            return
        state, spaces = self._state, index.spaces
        self._spaces = spaces
        self.follower = Follower(
            spaces, state.models, state.settings.reembed_share, state.log, on_done=self._search_with_active
        )
        if spaces.target is not None:
            fingerprint = spaces.active.space.fingerprint
            try:
                old = next(each for each in state.store.list() if each.fingerprint == fingerprint)
                state.models.load(old, beyond_limit=True)
            except (StopIteration, Fc7Error) as error:
                self.note = (
                    f"{spaces.active.space.model}, which made the index's vectors, cannot be loaded "
                    f"({str(error) or 'it is not published any more'}): search finds an image once {artifact.id} has "
                    "embedded it."
                )
                state.log.warning("index without its model", detail=self.note)
                spaces.go_at_once()
            else:
                state.models.activate(artifact.id, needed=old.id)
        self.follower.start(artifact.id)

    def follow(self, artifact: Artifact) -> None:
        """Follow another active version, which is loaded."""
        if self._shared is not None:
            self._follow_shared(self._shared, artifact)
        follower, spaces = self.follower, self._spaces
        if follower is None or spaces is None:
            return
        state = self._state
        follower.stop()
        self.note = ""
        try:
            gone_over = spaces.follow(artifact.fingerprint, artifact.embedder)
        except ImageIndexError as error:
            self.note = f"the index does not follow {artifact.id} yet: {error} Activate it again to try again."
            state.log.error("index does not follow", detail=self.note, exc_info=error)
            return
        if gone_over:
            self._search_with_active()
        follower.start(artifact.id)

    def close(self) -> None:
        """Stop following; what is made is kept, and the next start goes on."""
        if self.follower is not None:
            self.follower.stop()
        if self._mover is not None:
            self._mover.stop()

    def _begin_shared(self, index: MilvusImageIndex, artifact: Artifact) -> None:
        state, searched = self._state, index.searched
        self._shared = index
        self._mover = Mover(index, state.log, on_done=self._moved)
        if index.target is not None:
            old = next((each for each in state.store.list() if each.fingerprint == searched.fingerprint), None)
            if old is None:
                raise IndexModelError(state.settings.index_uri or "", searched.model, artifact.id, index.stats().images)
            state.models.load(old, beyond_limit=True)
            state.models.activate(artifact.id, needed=old.id)
            self._wait_for(index, artifact, self._mover)

    def _follow_shared(self, index: MilvusImageIndex, artifact: Artifact) -> None:
        mover = self._mover
        if mover is None:
            return
        mover.stop()
        self.note = ""
        try:
            gone_over = index.follow(VectorModel(artifact.fingerprint, artifact.embedder))
        except ImageIndexError as error:
            self.note = f"the index does not follow {artifact.id}: {error} Start the service again to try again."
            self._state.log.error("index does not follow", detail=self.note, exc_info=error)
            return
        if gone_over:
            self._search_with_active()
        else:
            self._wait_for(index, artifact, mover)

    def _wait_for(self, index: MilvusImageIndex, artifact: Artifact, mover: Mover) -> None:
        self.note = (
            f"the index on Milvus has vectors of {index.searched.model}, and search stays with it. To make those of "
            f"{artifact.id}, once for all replicas: fc7 index reembed --model {artifact.id}"
        )
        mover.start()

    def _moved(self) -> None:
        self.note = ""
        self._search_with_active()

    def _search_with_active(self) -> None:
        active = self._state.models.active
        if active is not None:
            self._state.models.activate(active.artifact.id)


def changed_files(artifact: Artifact, loaded_at: dict[str, tuple[int, int]]) -> list[str]:
    """Return the names of those files whose size or time is not what it was when the version was loaded."""
    return [name for name, stamp in file_stamps(artifact).items() if loaded_at.get(name) != stamp]


def file_stamps(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """Return size and time of change of each file of a version; (-1, 0) for one that is not there."""
    stamps = {}
    for name in artifact.manifest.files:
        stamps[name] = (-1, 0)
        with suppress(OSError):
            stat = (artifact.path / name).stat()
            stamps[name] = (stat.st_size, stat.st_mtime_ns)
    return stamps
