"""Serve another version: loaded, verified and warmed up beside the one that answers, then switched between requests.

Promises: one activation at a time; when any step fails the version before goes on answering, on disk as in memory, and
the error says why; the index follows in the background, and search uses the model of its vectors until it has.
Does not: know HTTP, publish or remove versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from index.errors import ImageIndexError, IndexModelError
from index.interface import ImageIndex
from index.local.index import LocalImageIndex
from index.local.spaces import Spaces
from index.milvus.index import MilvusImageIndex
from index.records import VectorModel
from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from service.indexing.milvus_watcher import Mover
from service.indexing.reembedder import Follower

if TYPE_CHECKING:
    from service.state import Resources


class IndexSync:
    """Keeps the index with the model: which loaded version search uses, and the following of a new one."""

    def __init__(self, state: Resources) -> None:
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
                spaces.switch_now()
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
            gone_over = spaces.start_migration(artifact.fingerprint, artifact.embedder)
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
            gone_over = index.start_migration(VectorModel(artifact.fingerprint, artifact.embedder))
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
