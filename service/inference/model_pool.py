"""The versions in memory and who uses them: switched between two requests, freed when the last user lets go.

Promises: a request uses one version from its first image to its last, whatever is activated meanwhile; a version that
is retired takes no new user, answers those it has, and is then closed, which gives its memory back; the active version
and the one that the index needs are never retired to make room.
Does not: read the disk, choose which version is served, load (what it is given does).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from model_store.artifact import Artifact
from model_store.runtime.runner import Runner
from service.errors import ModelNotLoadedError, TooManyModelsError
from service.inference.batcher import Batcher
from service.inference.memory import give_back


@dataclass(frozen=True, slots=True)
class Serving:
    """A version that answers: on disk, its sessions, and the queue before it."""

    artifact: Artifact
    runner: Runner
    batcher: Batcher

    def close(self) -> None:
        """Answer what is queued, and free the sessions."""
        self.batcher.close()
        self.runner.close()
        give_back()


@dataclass(slots=True)
class _Slot:
    serving: Serving
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    retired: bool = False


class ModelPool:
    """The versions in memory, by reference ("solar:1"); one of them is the active one. All methods are thread-safe."""

    def __init__(self, load: Callable[[Artifact], Serving], limit: int) -> None:
        """load: makes a version ready to answer, or raises. limit: how many may be in memory at rest."""
        self._load = load
        self._limit = limit
        self._loading = threading.Lock()  # one at a time: each takes most of the cores, and much memory for a moment
        self._changed = threading.Condition()
        self._places: dict[str, _Slot] = {}
        self._active: str | None = None
        self._needed: str | None = None
        self._requests = 0
        self._last_request = time.monotonic()
        self._closer = ThreadPoolExecutor(1, "fc7-retire")

    def close(self) -> None:
        """Close every version, after what it has to answer."""
        with self._changed:
            servings = [place.serving for place in self._places.values()]
            self._places.clear()
            self._changed.notify_all()
        for serving in servings:
            serving.close()
        self._closer.shutdown()

    @property
    def active(self) -> Serving | None:
        """The version that answers unless another is named, or None."""
        with self._changed:
            return None if self._active is None else self._places[self._active].serving

    def get(self, model: str) -> Serving | None:
        """Return a loaded version to look at, or None; to run it, `use` it."""
        with self._changed:
            place = self._places.get(model)
            return None if place is None else place.serving

    def find(self, fingerprint: str) -> str | None:
        """Return the reference of a loaded version with this fingerprint, the active one if it has it."""
        with self._changed:
            names = sorted(self._places, key=lambda name: name != self._active)
            return next((n for n in names if self._places[n].serving.artifact.fingerprint == fingerprint), None)

    def ids(self) -> list[str]:
        """Return the references of all that are loaded."""
        with self._changed:
            return list(self._places)

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered, by all versions."""
        with self._changed:
            return sum(place.serving.batcher.admitted for place in self._places.values())

    @contextmanager
    def use(self, model: str | None = None, *, background: bool = False) -> Iterator[Serving]:
        """Hold a loaded version, the active one unless `model` is named; it is not closed meanwhile.

        background: what can wait; it does not count as a request for `quiet`. Raises ModelNotLoadedError.
        """
        with self._changed:
            place = self._places.get(model or self._active or "")
            if place is None:
                raise ModelNotLoadedError(model or "active")
            place.users += 1
            self._requests += not background
        try:
            yield place.serving
        finally:
            with self._changed:
                place.users -= 1
                place.used = time.monotonic()
                if not background:
                    self._requests -= 1
                    self._last_request = place.used
                    self._changed.notify_all()
                if place.retired and not place.users:
                    self._closer.submit(place.serving.close)

    def load(self, artifact: Artifact, *, beyond_limit: bool = False) -> None:
        """Have a version in memory; the one that was not used for the longest time makes room for it.

        beyond_limit: load it first; `activate` makes room. Raises TooManyModelsError, and what loading raises.
        """
        with self._loading:
            with self._changed:
                if artifact.id in self._places:
                    return
                if not beyond_limit:
                    self._make_room(self._limit - 1)
            serving = self._load(artifact)
            with self._changed:
                self._places[artifact.id] = _Slot(serving)

    def activate(self, model: str, *, needed: str | None = None) -> None:
        """Answer with a loaded version from the next request on, and retire the one before it.

        needed: the version that the index's vectors are of, which stays loaded; None: the active one.
        """
        with self._changed:
            before = {self._active, self._needed}
            self._active, self._needed = model, needed
            for name in before - {model, needed, None}:
                self._retire(str(name))
            self._make_room(self._limit, strict=False)

    def retire(self, model: str) -> None:
        """Take a version out of use; who uses it is answered first. The active one stays."""
        with self._changed:
            if model != self._active:
                self._retire(model)

    def wait_for_quiet(self, quiet_s: float, latest: float, stopped: Callable[[], bool]) -> None:
        """Wait until no request used a model for `quiet_s` seconds, at most until `latest` (monotonic).

        `stopped` is asked after every request, and after `wake`.
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
        """Let `wait_for_quiet` look again whether it is to stop."""
        with self._changed:
            self._changed.notify_all()

    def _make_room(self, most: int, *, strict: bool = True) -> None:
        """Retire what was used least recently until at most `most` are loaded; the lock is held."""
        while len(self._places) > most:
            spare = [name for name in self._places if name not in (self._active, self._needed)]
            if not spare:
                if strict:
                    raise TooManyModelsError(self._limit, list(self._places))
                return
            self._retire(min(spare, key=lambda name: (self._places[name].users > 0, self._places[name].used)))

    def _retire(self, model: str) -> None:
        place = self._places.pop(model, None)
        if place is not None:
            place.retired = True
            if not place.users:
                self._closer.submit(place.serving.close)
