"""Model versions in memory: loading, switching between requests, and freeing those that are no longer used.

Guarantees: a request uses the same version from its first image to its last, even if another one is activated
meanwhile. A retired version accepts no new users, serves those it has, and is then closed, which frees its memory.
The active version and the one that the index needs are never retired to free a slot.
Out of scope: reading from disk, choosing the version to serve, and loading itself (see `loader`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from model_store.artifact import Artifact
from model_store.memory import return_freed_memory
from model_store.runtime.runner import Runner
from service.errors import ModelNotLoadedError, TooManyModelsError
from service.inference.batcher import Batcher


@dataclass(frozen=True, slots=True)
class Serving:
    """A loaded version: its files on disk, its sessions and its queue. `file_stamps` is from the time of loading."""

    artifact: Artifact
    runner: Runner
    batcher: Batcher
    file_stamps: dict[str, tuple[int, int]]

    def close(self) -> None:
        """Answer the queued images, and free the sessions."""
        self.batcher.close()
        self.runner.close()
        return_freed_memory()


@dataclass(slots=True)
class _Slot:
    serving: Serving
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)
    retired: bool = False


class ModelPool:
    """The loaded versions by reference ("solar:1"), one of which is active. All methods are thread-safe."""

    def __init__(self, load: Callable[[Artifact], Serving], limit: int) -> None:
        """load: loads a version, or raises. limit: how many versions may stay in memory."""
        self._load = load
        self._limit = limit
        self._loading = threading.Lock()  # one at a time: loading uses most cores, and much memory for a moment
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}
        self._active: str | None = None
        self._needed: str | None = None
        self._requests = 0
        self._last_request = time.monotonic()
        self._closer = ThreadPoolExecutor(1, "fc7-retire")

    def close(self) -> None:
        """Close every version after it has answered its queued images."""
        with self._changed:
            servings = [slot.serving for slot in self._slots.values()]
            self._slots.clear()
            self._changed.notify_all()
        for serving in servings:
            serving.close()
        self._closer.shutdown()

    @property
    def active(self) -> Serving | None:
        """The version that answers requests that name none, or None."""
        with self._changed:
            return None if self._active is None else self._slots[self._active].serving

    def get(self, model: str) -> Serving | None:
        """Return a loaded version for inspection, or None. To run it, use `use`."""
        with self._changed:
            slot = self._slots.get(model)
            return None if slot is None else slot.serving

    def find(self, fingerprint: str) -> str | None:
        """Return the reference of a loaded version with this fingerprint, preferably the active one, or None."""
        with self._changed:
            names = sorted(self._slots, key=lambda name: name != self._active)
            return next((n for n in names if self._slots[n].serving.artifact.fingerprint == fingerprint), None)

    def ids(self) -> list[str]:
        """Return the references of all loaded versions."""
        with self._changed:
            return list(self._slots)

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered, of all versions."""
        with self._changed:
            return sum(slot.serving.batcher.admitted for slot in self._slots.values())

    @contextmanager
    def use(self, model: str | None = None, *, background: bool = False) -> Iterator[Serving]:
        """Keep a loaded version open inside the block: the active one unless `model` is given.

        background: the work can wait, so `wait_for_quiet` does not count it as a request. Raises ModelNotLoadedError.
        """
        with self._changed:
            slot = self._slots.get(model or self._active or "")
            if slot is None:
                raise ModelNotLoadedError(model or "active")
            slot.users += 1
            self._requests += not background
        try:
            yield slot.serving
        finally:
            with self._changed:
                slot.users -= 1
                slot.last_used = time.monotonic()
                if not background:
                    self._requests -= 1
                    self._last_request = slot.last_used
                    self._changed.notify_all()
                if slot.retired and not slot.users:
                    self._closer.submit(slot.serving.close)

    def load(self, artifact: Artifact, *, beyond_limit: bool = False) -> None:
        """Load a version unless it is loaded; the least recently used one is retired if the limit is reached.

        beyond_limit: load it without retiring another; `activate` retires one later. Raises TooManyModelsError and the
        errors of loading.
        """
        with self._loading:
            with self._changed:
                if artifact.id in self._slots:
                    return
                if not beyond_limit:
                    self._shrink_to(self._limit - 1)
            serving = self._load(artifact)
            with self._changed:
                self._slots[artifact.id] = _Slot(serving)

    def activate(self, model: str, *, needed: str | None = None) -> Serving:
        """Use a loaded version from the next request on, and retire the previously active one.

        needed: the version that made the vectors which search uses; it stays loaded. None: the active version.
        """
        with self._changed:
            previous = {self._active, self._needed}
            self._active, self._needed = model, needed
            for name in previous - {model, needed, None}:
                self._retire(str(name))
            self._shrink_to(self._limit, strict=False)
            return self._slots[model].serving

    def retire(self, model: str) -> None:
        """Stop using a version once its current users are done. The active version stays."""
        with self._changed:
            if model != self._active:
                self._retire(model)

    def wait_for_quiet(self, quiet_s: float, latest: float, stopped: Callable[[], bool]) -> None:
        """Wait until no request has used a model for `quiet_s` seconds, at most until `latest` (monotonic).

        `stopped` is checked after every request, and after `wake`.
        """
        with self._changed:
            while not stopped():
                now = time.monotonic()
                left = latest - now
                if not self._requests:
                    left = min(left, self._last_request + quiet_s - now)
                if left <= 0:
                    return
                self._changed.wait(left)

    def wake(self) -> None:
        """Make `wait_for_quiet` check again whether it should stop."""
        with self._changed:
            self._changed.notify_all()

    def _shrink_to(self, limit: int, *, strict: bool = True) -> None:
        """Retire the least recently used versions until at most `limit` are loaded. The lock must be held."""
        while len(self._slots) > limit:
            spare = [name for name in self._slots if name not in (self._active, self._needed)]
            if not spare:
                if strict:
                    raise TooManyModelsError(self._limit, list(self._slots))
                return
            self._retire(min(spare, key=lambda name: (self._slots[name].users > 0, self._slots[name].last_used)))

    def _retire(self, model: str) -> None:
        slot = self._slots.pop(model, None)
        if slot is not None:
            slot.retired = True
            if not slot.users:
                self._closer.submit(slot.serving.close)
