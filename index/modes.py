"""Which modes a space can be searched in: learns the code of `fast` when a space has grown large, beside the service.

Promises: searches and writes go on while a code is learned, and are exact until it is there; what was learned is kept
on disk, and loaded before the vectors at the next start; without room for it the index goes on as it was.
Does not: search, or learn again when vectors come and go: no mode needs that.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from index.errors import ModeUnavailableError
from index.projection import SAMPLE, Projection
from index.searcher import Mode

if TYPE_CHECKING:
    from index.spaces import Room


class Modes:
    """The codes of one index's spaces. All methods may be called from any thread."""

    def __init__(self, folder: Path, *, fast_from: int | None, read_only: bool) -> None:
        """folder: the index's. fast_from: vectors from which on `fast` is learned; None: never, nor is it used."""
        self._folder, self._fast_from, self._read_only = folder, fast_from, read_only
        self._lock = threading.Lock()
        self._learning: dict[str, threading.Thread] = {}  # by fingerprint; one that failed is not tried again
        self._stop = threading.Event()

    def prepare(self, room: Room) -> None:
        """Give an empty space the code that was learned for its model, so that its rows are kept short at once."""
        if self._fast_from is None:
            return
        projection = Projection.load(_file(self._folder, room.space.fingerprint), room.space.fingerprint)
        if projection is not None:
            self._use(room, projection)

    def consider(self, room: Room) -> None:
        """Begin to learn a code when the space is large enough and has none."""
        if self._fast_from is None or self._read_only or len(room.searcher) < self._fast_from:
            return
        if room.pending is not None or room.searcher.has("fast"):
            return
        with self._lock:
            name = room.space.fingerprint
            if name not in self._learning and not self._stop.is_set():
                self._learning[name] = threading.Thread(target=self._learn, args=(room,), name="fc7-learn")
                self._learning[name].start()

    def resolve(self, room: Room, asked: Mode | None) -> Mode:
        """Return how a search that asks for a mode is done now. Raises ModeUnavailableError for `codes` without one."""
        if asked == "codes" and not room.searcher.has("codes"):
            raise ModeUnavailableError("codes", room.space.model)
        if asked in (None, "fast"):
            return "fast" if room.searcher.has("fast") else "exact"
        return asked

    def close(self) -> None:
        """Stop learning, and wait for its threads."""
        with self._lock:
            self._stop.set()
        for thread in self._learning.values():
            thread.join()

    def _learn(self, room: Room) -> None:
        log = structlog.get_logger(__name__)
        try:
            vectors = len(room.searcher)
            projection = Projection.train(room.searcher.sample(SAMPLE), stop=self._stop)
            if projection is None:
                return
            with contextlib.suppress(OSError):  # without room for it, it is learned again at the next start
                projection.save(_file(self._folder, room.space.fingerprint), room.space.fingerprint)
            self._use(room, projection)
            log.info("fast search is ready", model=room.space.model, vectors=vectors)
        except Exception:
            # Search goes on as it was, exactly; a thread's own traceback would miss the log.
            log.exception("fast search could not be made ready", model=room.space.model)

    def _use(self, room: Room, projection: Projection) -> None:
        room.searcher.install("fast", projection, stop=self._stop)
        if not self._read_only:
            with contextlib.suppress(OSError):  # without room for the files, rows stay in memory
                room.searcher.map_rows(self._folder, stop=self._stop)


def saved_mode(folder: Path, fingerprint: str) -> Mode:
    """Return the mode that searches of an index use by default, as its files say."""
    return "fast" if _file(folder, fingerprint).exists() else "exact"


def _file(folder: Path, fingerprint: str) -> Path:
    return folder / f"fast-{fingerprint[:16]}.code"
