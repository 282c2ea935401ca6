"""Keep the index in step with the served model: migrate it after another version was activated.

Guarantees: the index is migrated in the background. Until it is complete, search uses the previous vectors, and the
version that computed them stays loaded.
Out of scope: activating versions (service/inference/activation.py).
"""

from __future__ import annotations

from typing import Any

from index.errors import ImageIndexError
from index.interface import ImageIndex, VectorSpaces
from index.records import VectorModel
from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from model_store.store import ModelStore
from service.indexing.milvus_watcher import MilvusWatcher
from service.indexing.reembedder import Progress, Reembedder
from service.inference.model_pool import ModelPool


class IndexSync:
    """Migrates one index to the active version. Its methods are called by one thread at a time."""

    def __init__(self, store: ModelStore, models: ModelPool, reembed_share: float, log: Any) -> None:
        """reembed_share: largest share of the time that re-embedding takes while requests arrive."""
        self._store, self._models, self._share, self._log = store, models, reembed_share, log
        self._spaces: VectorSpaces | None = None
        self._worker: Reembedder | MilvusWatcher | None = None
        self._model = ""
        self._note = ""

    @property
    def note(self) -> str:
        """What search cannot find now and why; "" if there is no such restriction."""
        spaces = self._spaces
        if self._note or spaces is None or spaces.missing is not None or spaces.target is None:
            return self._note
        return (
            f"The index on Milvus has vectors of {spaces.searched.model}, and search uses these. To compute those of "
            f"{self._model}, once for all replicas, run: fc7 index reembed --model {self._model}"
        )

    @property
    def progress(self) -> Progress | None:
        """The progress of the last migration; None if there was none, or if another process migrates the index."""
        return None if self._worker is None else self._worker.progress

    def start(self, index: ImageIndex, artifact: Artifact) -> None:
        """Migrate an index that was just opened to the active version, and load the version of its vectors.

        Raises IndexModelError if an index on Milvus has vectors of a model that is not published here.
        """
        spaces = self._spaces = index.spaces
        if spaces.missing is None:
            self._worker = MilvusWatcher(spaces, self._log, on_switch=self._release_previous)
        else:
            self._worker = Reembedder(
                spaces, spaces.missing, self._models, share=self._share, log=self._log, on_switch=self._release_previous
            )
        if spaces.target is not None:
            self._load_searched_version(spaces, artifact)
        self._model = artifact.id
        self._worker.start(artifact.id)

    def migrate(self, artifact: Artifact) -> None:
        """Migrate the index to another active version, which is loaded."""
        spaces, worker = self._spaces, self._worker
        if spaces is None or worker is None:
            return
        worker.stop()
        self._model, self._note = artifact.id, ""
        try:
            complete = spaces.start_migration(VectorModel(artifact.fingerprint, artifact.embedder))
        except ImageIndexError as error:
            self._note = f"The index was not migrated to {artifact.id}: {error} Restart the service to try again."
            self._log.error("migration failed", model=artifact.id, detail=str(error), exc_info=error)
            return
        if complete:
            self._release_previous()
        worker.start(artifact.id)

    def images_added(self) -> None:
        """Try a stuck migration again: added images may have made it possible."""
        if self._worker is not None:
            self._worker.wake()

    def close(self) -> None:
        """Stop migrating. The vectors computed so far are kept, and the next start resumes."""
        if self._worker is not None:
            self._worker.stop()

    def _load_searched_version(self, spaces: VectorSpaces, artifact: Artifact) -> None:
        """Load the version that computed the searched vectors. If that fails, search the incomplete new vectors."""
        searched = spaces.searched
        version = next((each for each in self._store.list() if each.fingerprint == searched.fingerprint), None)
        if version is None:
            reason = "it is no longer published"
        else:
            try:
                self._models.load(version, beyond_limit=True)
            except Fc7Error as error:
                if spaces.missing is None:
                    raise
                reason = str(error)
            else:
                self._models.activate(artifact.id, needed=version.id)
                return
        spaces.switch_now()
        self._note = (
            f"{searched.model}, which computed the index's vectors, cannot be loaded ({reason}). "
            f"Search finds an image once {artifact.id} has embedded it."
        )
        self._log.warning("searched version not loaded", detail=self._note)

    def _release_previous(self) -> None:
        """Use the active version for search too, so that the version of the previous vectors can be freed."""
        active = self._models.active
        if active is not None:
            self._models.activate(active.artifact.id)
