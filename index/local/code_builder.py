"""Maintain the vector spaces of an index in a background thread: short codes, and the files of the vectors.

The code of `fast` is learned once a vector space is large enough, and again once its content has changed: if half of
the vectors are new or gone, or if a measurement shows that `fast` finds fewer of the exact neighbors than before. The
code of `codes` is an encoder that was trained for the model beforehand (`fc7 codes train`).

Guarantees: searches and writes continue meanwhile. Searches are exact until the first code is ready, and use the
previous code until a new one replaces it, all at once. A learned code is saved, and used at the next start. If the disk
is full, the index works on without the files.
Out of scope: searching.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import structlog

from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE
from index.errors import ModeUnavailableError
from index.local.space import SearchSpace
from index.local.vector_files import VectorFiles, remove_unfinished_files, remove_unused_files
from index.records import FastCode
from index.search.binary_code import BinaryCode
from index.search.merging import runs_to_write
from index.search.product_code import SAMPLE, Learned, ProductCode
from index.search.recall import measure_recall
from index.search.searcher import Mode
from model_store.code_store import CodeStore

_CHECK_AFTER = 0.1  # share of changed vectors after which the recall is measured
_RELEARN_AFTER = 0.5  # share of changed vectors after which the code is learned again
_FEWEST = 1000  # vectors from which a code is learned again, although the index was larger once
_RECALL_LOSS = 0.01  # loss of recall after which the code is learned again


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    space: SearchSpace
    work: Callable[[SearchSpace], None]


class CodeBuilder:
    """Maintains the vector spaces of one index. All methods may be called from any thread."""

    def __init__(self, folder: Path, *, fast_from: int | None, read_only: bool) -> None:
        """folder: of the index. fast_from: number of vectors from which on `fast` is learned; None: never.

        Raises OSError.
        """
        self._folder, self._fast_from, self._read_only = folder, fast_from, read_only
        self._lock = threading.Lock()
        self._working = threading.Lock()  # held by each task and by `optimize`, which runs in any thread
        self._encoders = CodeStore(folder.parent)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._queued: set[tuple[int, str]] = set()  # space and task
        self._failed: set[tuple[int, str]] = set()  # not tried again
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._identity = ""  # of the catalog
        if not read_only:
            remove_unfinished_files(folder)
        self._current: dict[int, SearchSpace] = {}  # by the id of the space

    def load(self, space: SearchSpace, catalog: Catalog) -> None:
        """Fill the empty searcher of a space, with the saved code of `fast` of its model.

        If codes are missing, searches are exact until they are computed. Raises IndexCorruptError.
        """
        self._identity = catalog.identity
        self._current[space.record.id] = space
        code = None
        fingerprint = space.record.fingerprint
        if self._fast_from is not None:
            code = ProductCode.load(_code_file(self._folder, fingerprint), fingerprint)
        if code is not None:
            space.learned = code.learned
            space.searcher.install("fast", code)
        complete = self._files(space).load(space.searcher, catalog, space.record.id, code)
        if code is not None:
            ids = space.searcher.ids()
            space.unchecked = int(code.learned.changed(ids) * len(ids))
        if code is not None and not complete:
            space.searcher.disable("fast")
            if not self._read_only:
                saved = code
                self._submit(_Task("encode", space, lambda _: self._install(space, saved)))
        if any(segment.mapped for segment in space.searcher.segments) and not self._read_only:
            self._submit(_Task("check", space, self._check_rows))

    def maintain(self, space: SearchSpace) -> None:
        """Start what the space needs now. Called after each change."""
        if self._read_only or space.pending is not None:
            return
        if runs_to_write(space.searcher.segments):
            self._submit(_Task("save", space, self._save))
        if self._fast_from is None:
            return
        count = len(space.searcher)
        if space.learned is None:
            if count >= self._fast_from:
                self._submit(_Task("learn", space, self._learn_first))
        elif count >= min(self._fast_from, _FEWEST) and space.unchecked >= _CHECK_AFTER * count:
            self._submit(_Task("measure", space, self._measure))

    def optimize(self, space: SearchSpace) -> None:
        """Learn the code again, if the space is large enough, and write all files; return when this is done."""
        with self._working:
            if self._fast_from is not None and len(space.searcher) >= self._fast_from:
                self._learn(space)
            self._save(space)

    def resolve_mode(self, space: SearchSpace, requested: Mode | None) -> Mode:
        """Return the mode that a search with the `requested` mode uses now.

        Raises ModeUnavailableError for `codes` while there is no such code.
        """
        if requested == "codes" and not space.searcher.has("codes"):
            trained = self._encoders.has(space.record.fingerprint)
            if trained:
                self._submit(_Task("codes", space, self._load_codes))
            raise ModeUnavailableError("codes", space.record.model, trained=trained)
        if requested in (None, "fast"):
            return "fast" if space.searcher.has("fast") else "exact"
        return requested

    def fast_code(self, space: SearchSpace) -> FastCode | None:
        """Describe the code of `fast`; None if there is none."""
        learned = space.learned
        if learned is None or not space.searcher.has("fast"):
            return None
        recall = learned.recall if space.recall is None else space.recall
        return FastCode(recall, learned.changed(space.searcher.ids()), learned.time)

    def remove_unused(self, fingerprints: list[str]) -> None:
        """Delete the files of all spaces except those of these models. Raises OSError."""
        if not self._read_only:
            remove_unused_files(self._folder, fingerprints)

    def close(self) -> None:
        """Stop the running task and wait for the thread to end."""
        with self._lock:
            self._stop.set()
            self._tasks.put(None)
        if self._thread is not None:
            self._thread.join()

    def _submit(self, task: _Task) -> None:
        """Run a task in the background, unless it is queued already or failed before."""
        name = task.space.record.id, task.name
        with self._lock:
            if name in self._queued or name in self._failed or self._stop.is_set():
                return
            self._queued.add(name)
            self._tasks.put(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="fc7-codes")
                self._thread.start()

    def _serve(self) -> None:
        faiss.omp_set_num_threads(1)
        while (task := self._tasks.get()) is not None and not self._stop.is_set():
            name = task.space.record.id, task.name
            log = structlog.get_logger(__name__).bind(task=task.name, model=task.space.record.model)
            with self._lock:
                self._queued.discard(name)  # before it runs, because later changes need another run
            try:
                if self._current.get(task.space.record.id) is not task.space:
                    continue  # the space was dropped, and perhaps loaded again
                with self._working:
                    task.work(task.space)
                log.info("index maintained", vectors=len(task.space.searcher))
            except Exception:
                with self._lock:
                    self._failed.add(name)
                log.exception("index not maintained")  # otherwise the traceback would be printed, not logged

    def _load_codes(self, space: SearchSpace) -> None:
        encoder = self._encoders.best(space.record.fingerprint)
        if encoder is not None and not space.searcher.has("codes"):
            space.searcher.install("codes", BinaryCode(encoder), stop=self._stop)

    def _learn_first(self, space: SearchSpace) -> None:
        if space.learned is None:  # otherwise a change during the training queued it again
            self._learn(space)

    def _learn(self, space: SearchSpace) -> None:
        """Learn the code of `fast` from the vectors that exist now, replace the previous one, and save both."""
        space.unchecked = 0
        learned = Learned.of(space.searcher.ids())
        code = ProductCode.train(space.searcher.sample(SAMPLE), learned=learned, stop=self._stop)
        if code is not None:
            self._install(space, code)

    def _install(self, space: SearchSpace, code: ProductCode) -> None:
        space.searcher.install("fast", code, stop=self._stop)
        if self._stop.is_set():
            return
        space.learned, space.recall = code.learned, None
        recall = code.learned.recall
        space.recall = measure_recall(space.searcher, self._stop) if recall is None else recall
        space.learned = replace(code.learned, recall=space.recall)
        named = replace(code, learned=space.learned)
        self._write(lambda: named.save(_code_file(self._folder, space.record.fingerprint), space.record.fingerprint))
        self._save(space)

    def _measure(self, space: SearchSpace) -> None:
        """Measure the recall, and learn the code again if the content has changed enough."""
        space.unchecked = 0
        learned = space.learned
        if learned is None:
            return
        if learned.changed(space.searcher.ids()) >= _RELEARN_AFTER:
            self._learn(space)
            return
        recall = measure_recall(space.searcher, self._stop)
        if recall is None:
            return
        space.recall = recall
        if learned.recall is None:  # the process ended before it was measured
            space.learned = replace(learned, recall=recall)
        elif recall < learned.recall - _RECALL_LOSS:
            self._learn(space)

    def _save(self, space: SearchSpace) -> None:
        self._write(lambda: self._files(space).save(space.searcher, self._stop))

    def _check_rows(self, space: SearchSpace) -> None:
        repaired = self._files(space).repair_rows(space.searcher, self._folder / CATALOG_FILE, self._stop)
        if repaired:
            structlog.get_logger(__name__).error("damaged vectors were read from the catalog", vectors=repaired)
            self._save(space)

    def _files(self, space: SearchSpace) -> VectorFiles:
        return VectorFiles(self._folder, self._identity, space.record.fingerprint)

    def _write(self, work: Callable[[], None]) -> None:
        """Run `work`, which writes derived files. If the disk is full, the index works on without them."""
        try:
            work()
        except OSError as error:
            structlog.get_logger(__name__).warning("files of the index not written", detail=str(error))


def saved_mode(folder: Path, fingerprint: str) -> Mode:
    """Return the default search mode of the index in `folder`, which need not be open."""
    return "fast" if ProductCode.is_saved(_code_file(folder, fingerprint)) else "exact"


def _code_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"fast-{fingerprint[:16]}.code"
