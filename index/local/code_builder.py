"""Prepare the codes of the search modes `fast` and `codes` in background threads.

The code of `fast` is trained once a vector space is large enough. The code of `codes` is an encoder that was trained
for the model beforehand (`fc7 codes train`).

Guarantees: searches and writes continue while a code is prepared, and searches are exact until `fast` is ready. A
trained code is saved, and is loaded before the vectors at the next start. If the disk is full, the index works on
without the file.
Out of scope: searching, and training a code again when vectors are added or removed. No mode needs that.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from index.errors import ModeUnavailableError
from index.local.space import SearchSpace
from index.search.binary_code import BinaryCode
from index.search.pca_code import SAMPLE, Projection
from index.search.searcher import Mode
from model_store.code_store import CodeStore


class CodeBuilder:
    """Builds the codes for the vector spaces of one index. All methods may be called from any thread."""

    def __init__(self, folder: Path, *, fast_from: int | None, read_only: bool) -> None:
        """folder: of the index. fast_from: number of vectors from which on `fast` is trained; None: never."""
        self._folder, self._fast_from, self._read_only = folder, fast_from, read_only
        self._lock = threading.Lock()
        self._encoders = CodeStore(folder.parent)
        # By fingerprint and mode. Threads stay listed after they end, so that a failure is not tried again.
        self._threads: dict[tuple[str, Mode], threading.Thread] = {}
        self._stop = threading.Event()

    def attach(self, space: SearchSpace) -> None:
        """Give an empty space the saved `fast` code of its model, so that its vectors are encoded while loading."""
        if self._fast_from is None:
            return
        fingerprint = space.record.fingerprint
        projection = Projection.load(_code_file(self._folder, fingerprint), fingerprint)
        if projection is not None:
            self._install_fast(space, projection)

    def maybe_train(self, space: SearchSpace) -> None:
        """Start to train the `fast` code if the space is large enough and has none."""
        if self._fast_from is None or self._read_only or len(space.searcher) < self._fast_from:
            return
        if space.pending is None and not space.searcher.has("fast"):
            self._prepare(space, "fast", self._train_fast)

    def resolve_mode(self, space: SearchSpace, requested: Mode | None) -> Mode:
        """Return the mode that a search with the `requested` mode uses now.

        Raises ModeUnavailableError for `codes` while there is no such code.
        """
        if requested == "codes" and not space.searcher.has("codes"):
            trained = self._encoders.has(space.record.fingerprint)
            if trained:
                self._prepare(space, "codes", self._load_codes)
            raise ModeUnavailableError("codes", space.record.model, trained=trained)
        if requested in (None, "fast"):
            return "fast" if space.searcher.has("fast") else "exact"
        return requested

    def close(self) -> None:
        """Stop training and wait for the threads to end."""
        with self._lock:
            self._stop.set()
        for thread in self._threads.values():
            thread.join()

    def _prepare(self, space: SearchSpace, mode: Mode, work: Callable[[SearchSpace], None]) -> None:
        """Run `work` in a thread, unless it ran before for this space and mode."""
        name = space.record.fingerprint, mode
        log = structlog.get_logger(__name__).bind(mode=mode, model=space.record.model)

        def run() -> None:
            try:
                work(space)
                log.info("search mode prepared", ready=space.searcher.has(mode), vectors=len(space.searcher))
            except Exception:
                log.exception("search mode not prepared")  # otherwise the traceback would be printed, not logged

        with self._lock:
            if name not in self._threads and not self._stop.is_set():
                self._threads[name] = threading.Thread(target=run, name=f"fc7-{mode}")
                self._threads[name].start()

    def _load_codes(self, space: SearchSpace) -> None:
        encoder = self._encoders.best(space.record.fingerprint)
        if encoder is not None:
            space.searcher.install("codes", BinaryCode(encoder), stop=self._stop)

    def _train_fast(self, space: SearchSpace) -> None:
        projection = Projection.train(space.searcher.sample(SAMPLE), stop=self._stop)
        if projection is None:
            return
        with contextlib.suppress(OSError):  # if the disk is full, the code is trained again at the next start
            projection.save(_code_file(self._folder, space.record.fingerprint), space.record.fingerprint)
        self._install_fast(space, projection)

    def _install_fast(self, space: SearchSpace, projection: Projection) -> None:
        space.searcher.install("fast", projection, stop=self._stop)
        if not self._read_only:
            with contextlib.suppress(OSError):  # if the disk is full, the vectors stay in memory
                space.searcher.map_rows(self._folder, stop=self._stop)


def saved_mode(folder: Path, fingerprint: str) -> Mode:
    """Return the default search mode of the index in `folder`, which need not be open."""
    return "fast" if _code_file(folder, fingerprint).exists() else "exact"


def _code_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"fast-{fingerprint[:16]}.code"
