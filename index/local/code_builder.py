"""Which modes a space can be searched in: gets the codes of `fast` and `codes` ready beside the service.

`fast` is learned when a space has grown large; `codes` takes the encoder that was trained for the model, if one was.

Promises: searches and writes go on meanwhile, and are exact until `fast` is ready; what was learned is kept on disk,
and loaded before the vectors at the next start; without room for it the index goes on as it was.
Does not: search, or learn again when vectors come and go: no mode needs that.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from index.errors import ModeUnavailableError
from index.search.binary_code import BinaryCode
from index.search.pca_code import SAMPLE, Projection
from index.search.searcher import Mode
from model_store.code_store import CodeStore

if TYPE_CHECKING:
    from index.local.space import SearchSpace


class CodeBuilder:
    """The codes of one index's spaces. All methods may be called from any thread."""

    def __init__(self, folder: Path, *, fast_from: int | None, read_only: bool) -> None:
        """folder: the index's. fast_from: vectors from which on `fast` is learned; None: never, nor is it used."""
        self._folder, self._fast_from, self._read_only = folder, fast_from, read_only
        self._lock = threading.Lock()
        self._encoders = CodeStore(folder.parent)
        self._threads: dict[tuple[str, Mode], threading.Thread] = {}  # by fingerprint; what failed is not tried again
        self._stop = threading.Event()

    def attach(self, room: SearchSpace) -> None:
        """Give an empty space the code that was learned for its model, so that its rows are kept short at once."""
        if self._fast_from is None:
            return
        projection = Projection.load(_file(self._folder, room.space.fingerprint), room.space.fingerprint)
        if projection is not None:
            self._use(room, projection)

    def maybe_train(self, room: SearchSpace) -> None:
        """Begin to learn a code when the space is large enough and has none."""
        if self._fast_from is None or self._read_only or len(room.searcher) < self._fast_from:
            return
        if room.pending is None and not room.searcher.has("fast"):
            self._begin(room, "fast", self._learn)

    def resolve_mode(self, room: SearchSpace, asked: Mode | None) -> Mode:
        """Return how a search that asks for a mode is done now. Raises ModeUnavailableError for `codes` without one."""
        if asked == "codes" and not room.searcher.has("codes"):
            trained = self._encoders.has(room.space.fingerprint)
            if trained:
                self._begin(room, "codes", self._encode)
            raise ModeUnavailableError("codes", room.space.model, trained=trained)
        if asked in (None, "fast"):
            return "fast" if room.searcher.has("fast") else "exact"
        return asked

    def close(self) -> None:
        """Stop learning, and wait for its threads."""
        with self._lock:
            self._stop.set()
        for thread in self._threads.values():
            thread.join()

    def _begin(self, room: SearchSpace, mode: Mode, work: Callable[[SearchSpace], None]) -> None:
        name = room.space.fingerprint, mode
        with self._lock:
            if name not in self._threads and not self._stop.is_set():
                self._threads[name] = threading.Thread(target=work, args=(room,), name=f"fc7-{mode}")
                self._threads[name].start()

    def _encode(self, room: SearchSpace) -> None:
        log = structlog.get_logger(__name__)
        try:
            encoder = self._encoders.best(room.space.fingerprint)
            if encoder is not None:
                room.searcher.install("codes", BinaryCode(encoder), stop=self._stop)
                log.info("binary codes are ready", model=room.space.model, bits=encoder.bits)
        except Exception:
            log.exception("binary codes could not be made ready", model=room.space.model)

    def _learn(self, room: SearchSpace) -> None:
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

    def _use(self, room: SearchSpace, projection: Projection) -> None:
        room.searcher.install("fast", projection, stop=self._stop)
        if not self._read_only:
            with contextlib.suppress(OSError):  # without room for the files, rows stay in memory
                room.searcher.map_rows(self._folder, stop=self._stop)


def saved_mode(folder: Path, fingerprint: str) -> Mode:
    """Return the mode that searches of an index use by default, as its files say."""
    return "fast" if _file(folder, fingerprint).exists() else "exact"


def _file(folder: Path, fingerprint: str) -> Path:
    return folder / f"fast-{fingerprint[:16]}.code"
