"""Activation: switching the served version without failing a request.

Guarantees: one activation runs at a time. The new version is loaded, verified and warmed up before the switch. If any
step fails, the current version stays active, on disk and in memory.
Out of scope: loading (see `model_pool`), keeping the index in step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model_store.artifact import Artifact
from model_store.store import ModelStore
from service.errors import ActivationRunningError
from service.inference.model_pool import ModelPool


@dataclass(frozen=True, slots=True)
class Activated:
    """Result of an activation: the version served now, the one served before ("solar:1"), and the seconds it took."""

    model: Artifact
    previous: str | None
    seconds: float


class Activator:
    """Switches the served version. All methods may be called from any thread."""

    def __init__(self, store: ModelStore, models: ModelPool, log: Any, switch: Callable[[Artifact], None]) -> None:
        """switch: serves a loaded version from the next request on."""
        self._store, self._models, self._log, self._switch = store, models, log, switch
        self._busy = threading.Lock()
        self._target = ""

    def activate(self, name: str, version: int) -> Activated:
        """Serve this version. Raises ActivationRunningError, ModelNotFoundError, and the errors of loading it."""
        return self._activate(f"{name}:{version}", lambda: self._store.get(name, version, verify=False))

    def rollback(self) -> Activated:
        """Serve the previously active version. Raises NoPreviousModelError, and as `activate` does."""
        return self._activate("the previous version", lambda: self._store.previous(verify=False))

    @property
    def running(self) -> str | None:
        """The version that is being activated now, or None."""
        return self._target if self._busy.locked() else None

    def close(self) -> None:
        """Wait for a running activation to finish, and prevent further ones."""
        self._busy.acquire()

    def _activate(self, target: str, find: Callable[[], Artifact]) -> Activated:
        if not self._busy.acquire(blocking=False):
            raise ActivationRunningError(self._target)
        self._target = target
        started = time.monotonic()
        try:
            models = self._models
            previous = None if models.active is None else models.active.artifact.id
            artifact = find()
            was_loaded = models.get(artifact.id) is not None
            try:
                models.load(artifact, beyond_limit=True)  # verifies the files, unless the version was loaded before
                self._store.activate(artifact.name, artifact.version, verify=was_loaded)
            except BaseException:
                if not was_loaded:
                    models.retire(artifact.id)
                raise
            if artifact.id != previous:
                self._switch(artifact)
            seconds = time.monotonic() - started
            self._log.info("activated", model=artifact.id, previous=previous, seconds=round(seconds, 2))
            return Activated(artifact, previous, seconds)
        finally:
            self._busy.release()
