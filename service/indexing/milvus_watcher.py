"""The service and an index that it shares with other replicas: going over to a model when its vectors are made.

Promises: search stays with the model before until `fc7 index reembed` has made all vectors of the other one, and goes
over by itself then; meanwhile what is added has vectors of both.
Does not: make vectors of what is in the index already: every replica would make the same ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from index.errors import ImageIndexError
from index.milvus.index import MilvusImageIndex

_LOOK_S: Final = 5.0


class Mover:
    """The thread that looks whether the vectors are made. `start` and `stop` as often as wanted, by one thread."""

    def __init__(self, index: MilvusImageIndex, log: Any, on_done: Callable[[], None]) -> None:
        """on_done: search has gone over; called in the thread."""
        self._index, self._log, self._on_done = index, log, on_done
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look from now on, until search has gone over."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="fc7-move", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                if self._index.advance():
                    self._log.info("index followed", model=self._index.searched.model)
                    self._on_done()
                    return
            except ImageIndexError as error:
                self._log.warning("index cannot be asked", detail=str(error))
