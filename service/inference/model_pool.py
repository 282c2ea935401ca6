"""Model versions in memory: loading, sharing between requests, and freeing those that are no longer used.

Guarantees: a request uses the same version from its first image to its last, even if another one is activated
meanwhile. A retired version accepts no new users, serves those it has, and is then closed, which frees its memory.
A pinned version is never retired to free a slot.
Out of scope: reading from disk, choosing the version to serve and those to pin (see service/indexing/versions.py), and
loading itself (see `loader`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from model_store.artifact import Artifact
from model_store.memory import return_freed_memory
from model_store.novelty.reference import Reference
from model_store.runtime.runner import Runner
from service.errors import ModelNotLoadedError, TooManyModelsError, VersionsPinnedError
from service.inference.batcher import Batcher


def key_of(artifact: Artifact) -> str:
    """Return what identifies a version in memory. It differs if the version was replaced under the same number."""
    return f"{artifact.embedder}@{hashlib.sha256(artifact.manifest.to_bytes()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Serving:
    """A loaded version: its files on disk, its sessions and its queue.

    key: identifies it in the pool, see `key_of`. file_stamps: from the time of loading. reference: for the novelty of
    images; None if the version was published without one.
    """

    key: str
    artifact: Artifact
    runner: Runner
    batcher: Batcher
    file_stamps: dict[str, tuple[int, int]]
    reference: Reference | None = None

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
    """The loaded versions by key (see `key_of`). All methods are thread-safe."""

    def __init__(self, load: Callable[[Artifact], Serving], limit: int) -> None:
        """load: loads a version, or raises. limit: how many versions may stay in memory."""
        self._load = load
        self._limit = limit
        self._loading = threading.Lock()  # one at a time: loading uses most cores, and much memory for a moment
        self._changed = threading.Condition()  # reentrant
        self._slots: dict[str, _Slot] = {}
        self._pinned: Sequence[str] = ()
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

    def get(self, key: str) -> Serving | None:
        """Return a loaded version for inspection, or None. To run it, use `use`."""
        with self._changed:
            slot = self._slots.get(key)
            return None if slot is None else slot.serving

    def named(self, reference: str) -> Serving | None:
        """Return the loaded version with this reference ("solar:1") for inspection, a pinned one first, or None."""
        return self._first(lambda artifact: artifact.id == reference)

    def find(self, fingerprint: str) -> str | None:
        """Return the key of a loaded version with this fingerprint, a pinned one first, or None."""
        found = self._first(lambda artifact: artifact.fingerprint == fingerprint)
        return None if found is None else found.key

    def ids(self) -> list[str]:
        """Return the references ("solar:1") of all loaded versions."""
        with self._changed:
            return [slot.serving.artifact.id for slot in self._slots.values()]

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered, of all versions."""
        with self._changed:
            return sum(slot.serving.batcher.admitted for slot in self._slots.values())

    @contextmanager
    def use(self, key: str, *, background: bool = False) -> Iterator[Serving]:
        """Keep a loaded version open inside the block.

        background: the work can wait, so `wait_for_quiet` does not count it as a request. Raises ModelNotLoadedError.
        """
        with self._changed:
            slot = self._slots.get(key)
            if slot is None:
                raise ModelNotLoadedError(key.partition("@")[0])
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

    def load(self, artifact: Artifact, *, beyond_limit: bool = False) -> Serving:
        """Return a version, loaded if needed. Without a free slot, the least recently used one is retired.

        A pinned version, or one with `beyond_limit`, is loaded without retiring another one. Raises TooManyModelsError,
        VersionsPinnedError and the errors of loading.
        """
        key = key_of(artifact)
        with self._loading:
            with self._changed:
                if key in self._slots:
                    return self._slots[key].serving
                if key not in self._pinned and not beyond_limit:
                    self._shrink_to(self._limit - 1)
            serving = self._load(artifact)
            with self._changed:
                self._slots[key] = _Slot(serving)
            return serving

    def pin(self, keys: Sequence[str]) -> None:
        """Pin exactly these versions, loaded or not, in the order in which `find` prefers them.

        Until the next call, they are not retired to free a slot. The others share the slots that are left.
        """
        with self._changed:
            self._pinned = tuple(dict.fromkeys(keys))
            self._shrink_to(self._limit, strict=False)

    def retire(self, key: str) -> None:
        """Stop using a version, pinned or not, once its current users are done."""
        with self._changed:
            slot = self._slots.pop(key, None)
            if slot is not None:
                slot.retired = True
                if not slot.users:
                    self._closer.submit(slot.serving.close)

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

    def _first(self, matches: Callable[[Artifact], bool]) -> Serving | None:
        with self._changed:
            servings = [self._slots[key].serving for key in (*self._pinned, *self._slots) if key in self._slots]
        return next((each for each in servings if matches(each.artifact)), None)

    def _shrink_to(self, limit: int, *, strict: bool = True) -> None:
        """Retire the least recently used versions until at most `limit` are loaded. The lock must be held."""
        while len(self._slots) > limit:
            spare = [key for key in self._slots if key not in self._pinned]
            if not spare:
                if not strict:
                    return
                ids = [slot.serving.artifact.id for slot in self._slots.values()]
                raise (TooManyModelsError if len(self._pinned) <= 1 else VersionsPinnedError)(self._limit, ids)
            self.retire(min(spare, key=lambda key: (self._slots[key].users > 0, self._slots[key].last_used)))
