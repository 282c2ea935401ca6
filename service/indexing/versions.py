"""Which version answers requests, and which vector space is searched: the only owner of both.

On disk, `active.json` names the active version, and the index stores the roles of its vector spaces. In memory,
`Deployment` is the active version with the index; a reader takes it once per request. The roles of the spaces in memory
are drawn in index/local/spaces.py; only this module changes them, through `VectorSpaces`.

    nothing deployed (no version was ever activated)
        |
        | activate, or the start of the service
        v
    deployed <------------------------------------------------------------+
        |  The active version and the version that computed the searched  |
        |  vectors are pinned in memory.                                  |
        |                                                                 |
        | activate, roll back                                             | a step failed: the steps before it
        v                                                                 | are undone, in reverse order
    1. the version is pinned                          undo: unpin it      |
    2. it is loaded, verified and warmed up           undo: retire it ----+
    3. the running migration is paused                undo: resume it
    4. the index is opened, or                        undo: close it
       its migration to the version starts            undo: go back to the migration before
    5. `active.json` names the version                undo: by the store, if it fails
        |
        | nothing below can fail the activation
        v
    6. the new `Deployment` answers requests; versions that are not needed any more are retired
    7. search switches, if the vectors are complete. Otherwise the re-embedder computes the missing ones, and then
       switches. Until then, search uses the previous vectors, and the version that computed them stays pinned.

Guarantees: one activation runs at a time. A failed one leaves memory, disk, index and readiness as they were. If the
process is killed before step 5, the next start uses the version before. A version that is active, being activated or
needed for search is never retired to free a slot.
Out of scope: verifying and loading a version (service/inference/loader.py), computing vectors (`reembedder`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from index.catalog.spaces import SwitchResult
from index.interface import ImageIndex
from index.records import IndexOptions, VectorModel
from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from model_store.store import ModelStore, require_better_than_baseline
from service.errors import ActivationRunningError, DrainingError, MemoryShortError, ModelNotLoadedError
from service.indexing.reembedder import Progress, Reembedder
from service.inference.memory import needed_to_load
from service.inference.model_pool import ModelPool, Serving, key_of


@dataclass(frozen=True, slots=True)
class Deployment:
    """What answers requests. note: what search cannot find since the index was opened, and why; "" for nothing."""

    serving: Serving
    index: ImageIndex
    reembedder: Reembedder
    note: str = ""

    @property
    def model(self) -> VectorModel:
        """The model of the active version."""
        return _model_of(self.serving.artifact)


@dataclass(frozen=True, slots=True)
class Activated:
    """Result of an activation: the version served now, the one served before ("solar:1"), and the seconds it took."""

    model: Artifact
    previous: str | None
    seconds: float


class VersionManager:
    """Activates versions, and migrates the index to them. All methods may be called from any thread."""

    def __init__(
        self,
        store: ModelStore,
        models: ModelPool,
        open_index: Callable[[IndexOptions], ImageIndex],
        close_index: Callable[[ImageIndex], None],
        *,
        on_deployed: Callable[[Serving], None],
        reembed_share: float,
        log: Any,
    ) -> None:
        """on_deployed: called after each activation; it must not raise.

        reembed_share: largest share of the time that re-embedding takes while requests arrive.
        """
        self._store, self._models, self._share, self._log = store, models, reembed_share, log
        self._open_index, self._close_index, self._on_deployed = open_index, close_index, on_deployed
        self._activating = threading.Lock()  # held during an activation
        self._target = ""  # the version that is being activated
        self._closing = False
        self._pinning = threading.Lock()  # held while the pins are changed
        self._pinned: list[str] = []
        self._loading: list[str] = []  # versions that the running activation needs
        self._deployed: Deployment | None = None

    @property
    def deployed(self) -> Deployment | None:
        """What answers requests now; None if no version is active."""
        return self._deployed

    @property
    def active(self) -> Serving | None:
        """The version that answers requests that name none, or None."""
        deployed = self._deployed
        return None if deployed is None else deployed.serving

    @property
    def index(self) -> ImageIndex | None:
        """The index, or None if no version is active."""
        deployed = self._deployed
        return None if deployed is None else deployed.index

    @property
    def running(self) -> str | None:
        """The version that is being activated now, or None."""
        return self._target if self._activating.locked() else None

    @property
    def progress(self) -> Progress | None:
        """The progress of the last migration; None if there was none, or if another process migrates the index."""
        deployed = self._deployed
        return None if deployed is None else deployed.reembedder.progress

    def notes(self) -> list[str]:
        """Return what is limited now, and why."""
        deployed = self._deployed
        if deployed is None:
            return []
        served, notes = deployed.serving.artifact.id, [deployed.note, deployed.reembedder.note]
        spaces = deployed.index.spaces
        if spaces.missing is None and spaces.target is not None:
            notes.append(
                f"The index on Milvus has vectors of {spaces.searched.model}, and search uses these. To compute those "
                f"of {served}, once for all replicas, run: fc7 index reembed --model {served}"
            )
        try:
            active = self._store.active()
        except Fc7Error as error:
            notes.append(str(error))
        else:
            if (chosen := "no version" if active is None else str(active.active)) != served and not self.running:
                notes.append(
                    f"{served} answers requests, but active.json names {chosen}. To use that one, restart the service "
                    "or activate it with POST /v1/models/NAME/VERSION/activate."
                )
        return [note for note in notes if note]

    def open(self) -> None:
        """Deploy the active version. Raises NoActiveModelError, and the errors of loading it and of opening the index.

        The version is verified.
        """
        with self._activating:
            self._deploy(self._store.active_artifact(verify=False), save=False)

    def activate(self, name: str, version: int, *, force: bool = False) -> Activated:
        """Deploy this version, and save that it is active.

        force: also if it is no better than always predicting the same class (otherwise NoBetterThanBaselineError).
        Raises ActivationRunningError, DrainingError, ModelNotFoundError, ActivationError, and the errors of loading it
        and of the index.
        """

        def find() -> Artifact:
            artifact = self._store.get(name, version, verify=False)
            if not force:
                require_better_than_baseline(artifact)
            return artifact

        return self._activate(f"{name}:{version}", find)

    def rollback(self) -> Activated:
        """Activate the previously active version. Raises NoPreviousModelError, and as `activate` does."""
        return self._activate("the previous version", lambda: self._store.previous(verify=False))

    def images_added(self) -> None:
        """Try a stuck migration again: added images may have made it possible."""
        if self._deployed is not None:
            self._deployed.reembedder.wake()

    def load_for(self, fingerprint: str) -> None:
        """Load the version that computed the searched vectors again, if it is not in memory any more.

        Raises ModelNotLoadedError if it is not published any more, and the errors of loading.
        """
        artifact = self._published(fingerprint)
        if artifact is None:
            raise ModelNotLoadedError(f"with the fingerprint {fingerprint[:12]}")
        self._models.load(artifact, beyond_limit=True)
        self._pin()

    def close(self) -> None:
        """Wait for a running activation to fail or finish, prevent further ones, and close the index."""
        self._closing = True
        with self._activating:
            deployed, self._deployed = self._deployed, None
            if deployed is not None:
                deployed.reembedder.close()
                self._close_index(deployed.index)

    def _activate(self, target: str, find: Callable[[], Artifact]) -> Activated:
        if not self._activating.acquire(blocking=False):
            raise ActivationRunningError(self._target)
        try:
            self._target = target
            self._check_open()
            started = time.monotonic()
            previous = None if self.active is None else self.active.artifact.id
            artifact = find()
            try:
                self._deploy(artifact, save=True)
            except MemoryError as error:
                raise MemoryShortError(artifact.id, needed_to_load(artifact), 0) from error
            seconds = time.monotonic() - started
            self._log.info("activated", model=artifact.id, previous=previous, seconds=round(seconds, 2))
            return Activated(artifact, previous, seconds)
        finally:
            self._activating.release()

    def _deploy(self, artifact: Artifact, *, save: bool) -> None:
        """Take all steps of the drawing above, or none. `_activating` must be held."""
        now = self._deployed
        with ExitStack() as undo:
            serving = self._load(artifact, undo)
            self._check_open()
            if now is None:
                index, reembedder = self._open(artifact, undo)
            else:
                index, reembedder = now.index, now.reembedder
                self._undo(undo, reembedder.resume)
                reembedder.pause()
                former = index.spaces.target or index.searched
                index.spaces.start_migration(_model_of(artifact))
                self._undo(undo, index.spaces.start_migration, former)
            if index.spaces.missing is None and self._load_searched(index):
                index.spaces.switch_now()  # raises: other replicas search these vectors
            if save:
                self._store.activate(artifact.name, artifact.version, verify=False)
            undo.pop_all()
        self._deployed = Deployment(serving, index, reembedder)
        self._on_deployed(serving)
        self._migrate(self._deployed)

    def _load(self, artifact: Artifact, undo: ExitStack) -> Serving:
        """Pin and load a version. Its files are verified, also if it is loaded already."""
        key = key_of(artifact)
        self._undo(undo, self._unpin)
        if self._models.get(key) is not None:
            artifact.verify()
        else:
            self._undo(undo, self._models.retire, key)
        self._loading.append(key)
        self._pin()
        return self._models.load(artifact)

    def _open(self, artifact: Artifact, undo: ExitStack) -> tuple[ImageIndex, Reembedder]:
        index = self._open_index(IndexOptions(artifact.fingerprint, artifact.embedder, migrate=True))
        self._undo(undo, self._close_index, index)
        reembedder = Reembedder(index.spaces, self._models, share=self._share, log=self._log, on_switch=self._pin)
        self._undo(undo, reembedder.close)
        return index, reembedder

    def _migrate(self, deployed: Deployment) -> None:
        """Let search use the vectors of the deployed version, now or after those that are missing were computed."""
        model, missing = deployed.model, 0
        try:
            spaces = deployed.index.spaces
            if spaces.finish(model) is not SwitchResult.DONE and spaces.missing is not None:
                self._search_without_missing(deployed)
            missing = next(
                (each.missing_vectors for each in spaces.describe() if each.fingerprint == model.fingerprint), 0
            )
            nothing_to_do = spaces.missing is None or (not missing and spaces.target is None)
        except Exception as error:  # the version is active already: the re-embedder tries it again
            self._log.error("migration interrupted", model=model.model, detail=str(error), exc_info=error)
            nothing_to_do = False
        self._loading.clear()
        self._pin()
        deployed.reembedder.migrate(model, deployed.serving.key, None if nothing_to_do else missing)

    def _search_without_missing(self, deployed: Deployment) -> None:
        """Load the version of the searched vectors. If that fails, search the incomplete vectors of the new version."""
        searched, served = deployed.index.searched, deployed.serving.artifact.id
        try:
            reason = self._load_searched(deployed.index)
        except Fc7Error as error:
            reason = str(error)
        if reason:
            deployed.index.spaces.switch_now()
            note = (
                f"{searched.model}, which computed the index's vectors, cannot be loaded ({reason}). "
                f"Search finds an image once {served} has embedded it."
            )
            self._log.warning("searched version not loaded", detail=note)
            self._deployed = replace(deployed, note=note)

    def _load_searched(self, index: ImageIndex) -> str:
        """Load the version of the searched vectors, and pin it. Returns why that is not possible; "" if it is loaded.

        Raises the errors of loading.
        """
        fingerprint = index.searched.fingerprint
        if self._models.find(fingerprint) is not None:
            return ""
        artifact = self._published(fingerprint)
        if artifact is None:
            return "it is no longer published"
        self._loading.append(key_of(artifact))
        self._pin()
        self._models.load(artifact)
        return ""

    def _published(self, fingerprint: str) -> Artifact | None:
        return self._store.find(fingerprint)

    def _pin(self, *, retire: bool = True) -> None:
        """Pin exactly the versions that are needed now.

        retire: retire those that were pinned and are not needed any more, instead of leaving them to the limit.
        """
        with self._pinning:
            pins = [*self._needed(), *self._loading]
            for key in set(self._pinned) - set(pins) if retire else ():
                self._models.retire(key)
            self._models.pin(pins)
            self._pinned = pins

    def _unpin(self) -> None:
        """Undo the pins of a failed activation. Versions that were in memory before it stay there."""
        self._loading.clear()
        self._pin(retire=False)

    def _needed(self) -> list[str]:
        """Return the keys of the active version and, if it is another one, of the version of the searched vectors."""
        deployed = self._deployed
        if deployed is None:
            return []
        fingerprint = deployed.index.searched.fingerprint
        searched = None if fingerprint == deployed.model.fingerprint else self._models.find(fingerprint)
        return [deployed.serving.key] if searched is None else [deployed.serving.key, searched]

    def _check_open(self) -> None:
        if self._closing:
            raise DrainingError

    def _undo(self, undo: ExitStack, step: Callable[..., object], *arguments: object) -> None:
        """Take `step` if a later one fails. If it fails too, the error of the later one is the one that is raised."""

        def take() -> None:
            try:
                step(*arguments)
            except Exception as error:
                self._log.error("undoing a failed activation failed", detail=str(error), exc_info=error)

        undo.callback(take)


def _model_of(artifact: Artifact) -> VectorModel:
    return VectorModel(artifact.fingerprint, artifact.embedder)
