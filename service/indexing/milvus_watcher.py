"""Switch search to another model once `fc7 index reembed` has computed its vectors in an index on Milvus.

Guarantees: search uses the previous vectors until the new ones are complete, and then switches without a restart.
Out of scope: computing the vectors of indexed images, because every replica would compute the same ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from index.catalog.spaces import SwitchResult
from index.errors import ImageIndexError
from index.interface import VectorSpaces

_POLL_S: Final = 5.0


class MilvusWatcher:
    """A thread that polls whether the vectors are complete. Can be started and stopped repeatedly, by one thread."""

    progress = None  # only `fc7 index reembed` knows it

    def __init__(self, spaces: VectorSpaces, log: Any, on_switch: Callable[[], None]) -> None:
        """on_switch: called in the watcher's thread after search has switched."""
        self._spaces, self._log, self._on_switch = spaces, log, on_switch
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, model: str) -> None:
        """Poll until search has switched to the loaded version `model`, if a migration is running."""
        if self._spaces.target is None:
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(model,), name="fc7-migrate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Do nothing: added images do not complete a migration on Milvus."""

    def _run(self, model: str) -> None:
        while not self._stopping.wait(_POLL_S):
            try:
                target = self._spaces.target
                if target is None or self._spaces.finish(target) is SwitchResult.DONE:
                    self._log.info("index migrated", model=model)
                    self._on_switch()
                    return
            except ImageIndexError as error:
                self._log.warning("migration check failed", model=model, detail=str(error))
