"""Switch the served version while requests are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_store.artifact import Artifact
from model_store.errors import NoActiveModelError, NoPreviousModelError
from service.errors import ActivationRunningError

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
