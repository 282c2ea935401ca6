"""Compute the missing vectors of the active model in the background, then let search use them.

Guarantees: images are embedded one at a time from their stored pictures, while no request uses a model. If requests
never pause, re-embedding takes at most `share` of the time, so that they are hardly delayed. Computed vectors are kept
if it is interrupted, and it resumes from there. An image without a usable picture is counted and named, and search
switches without it. If most images have none, search keeps using the previous vectors. After an error of any kind, the
migration is tried again.
Out of scope: loading models, and choosing the model (service/indexing/versions.py). With an index on Milvus,
`fc7 index reembed` computes the vectors, because every replica would compute the same ones; this thread then waits for
them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.bulk.pipeline import decode_picture
from index.catalog.spaces import SwitchResult
from index.records import Unembedded, VectorModel
from index.vector_spaces import MissingVectors, VectorSpaces
from model_store.errors import Fc7Error
from model_store.image import views
from service.inference.model_pool import ModelPool

QUIET_S: Final = 2.0  # after this time without requests, the service counts as idle
POLL_S: Final = 5.0  # how often an index on Milvus is asked whether the vectors are complete
RETRY_S: Final = 30.0
_COMMIT_SIZE: Final = 16  # images; every commit waits for the disk
_MAX_SKIPPED_KEYS: Final = 20


class MigrationState(StrEnum):
    """The state of a migration to another model."""

    RUNNING = "running"
    DONE = "done"
    STUCK = "stuck"  # most images have no usable picture: search keeps using the previous vectors
    WAITING = "waiting"  # an error occurred; the migration is tried again


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a migration. total: images without a vector at the start. done: those that have one now.

    skipped: those that cannot be embedded. skipped_keys: the first of these, with the reasons. detail: of an error.
    """

    model: str
    state: MigrationState = MigrationState.RUNNING
    total: int = 0
    done: int = 0
    skipped: int = 0
    skipped_keys: dict[str, str] = field(default_factory=dict)
    detail: str = ""


class Reembedder:
    """The thread that completes migrations, one after the other. It runs until `close`.

    `pause` and `resume` are called by one thread at a time.
    """

    def __init__(
        self, spaces: VectorSpaces, models: ModelPool, *, share: float, log: Any, on_switch: Callable[[], None]
    ) -> None:
        """share: largest share of the time while requests arrive. on_switch: called in the thread after a switch."""
        self._spaces, self._models, self._share, self._log, self._on_switch = spaces, models, share, log, on_switch
        self._changed = threading.Condition()
        self._stopping = threading.Event()  # set while the thread must not work
        self._stopping.set()
        self._closed = False
        self._busy = False
        self._woken = False
        self._migration: tuple[VectorModel, str] | None = None  # the model, and the key of the version that runs
        self._due = 0.0  # the time (monotonic) of the next try
        self._progress: Progress | None = None
        self._run_s = 0.0  # duration of the last run of the model
        self._thread = threading.Thread(target=self._run, name="fc7-migrate", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> Progress | None:
        """The progress of the last migration, or None if no vectors were missing, or if another process adds them."""
        return self._progress

    @property
    def note(self) -> str:
        """Why the migration does not advance; "" if it does, or if there is none."""
        progress = self._progress
        if not self._thread.is_alive() and not self._closed:
            return "The thread that migrates the index has ended. Its error is in the log. Restart the service."
        if progress is None or progress.state is not MigrationState.WAITING:
            return ""
        return (
            f"The migration of the index to {progress.model} was interrupted, and is tried again every "
            f"{RETRY_S:g} s: {progress.detail}"
        )

    def pause(self) -> None:
        """Stop working after the current image. Vectors computed so far are kept."""
        self._stopping.set()
        self._models.wake()
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy)

    def resume(self) -> None:
        """Continue the migration that was paused."""
        with self._changed:
            self._stopping.clear()
            self._due = 0.0
            self._changed.notify_all()

    def migrate(self, model: VectorModel, version: str, missing: int | None) -> None:
        """Migrate to `model` instead, while paused, and resume. Unused vectors are deleted in any case.

        version: key of the version that computes the vectors; it must stay pinned. missing: how many vectors to
        compute; None if there is nothing to do.
        """
        self._migration = model, version
        self._progress = None if missing is None else Progress(model.model, total=missing)
        self.resume()

    def wake(self) -> None:
        """Try a stuck migration again: images were added."""
        with self._changed:
            self._woken = True
            if self._stuck:
                self._due = 0.0
                self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread. The vectors computed so far are kept, and the next start resumes."""
        self._closed = True
        self._stopping.set()
        self._models.wake()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    @property
    def _stuck(self) -> bool:
        return self._progress is not None and self._progress.state is MigrationState.STUCK

    def _run(self) -> None:
        while (migration := self._next()) is not None:
            try:
                wait_s = self._advance(*migration)
            except BaseException as error:  # whatever it is: without this thread, the index would never be migrated
                detail = str(error) if isinstance(error, Fc7Error) else f"{type(error).__name__}: {error}"
                self._progress = replace(
                    self._progress or Progress(migration[0].model), state=MigrationState.WAITING, detail=detail
                )
                self._log.error("migration interrupted", model=migration[0].model, detail=detail, exc_info=error)
                wait_s = RETRY_S
            with self._changed:
                self._due = 0.0 if self._woken and self._stuck else time.monotonic() + wait_s

    def _next(self) -> tuple[VectorModel, str] | None:
        """Wait until there is work. Returns None after `close`."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._closed:
                left = self._due - time.monotonic()
                if self._migration is None or self._stopping.is_set():
                    left = math.inf
                if left <= 0:
                    self._busy, self._woken = True, False
                    return self._migration
                self._changed.wait(None if left == math.inf else left)
        return None

    def _advance(self, model: VectorModel, version: str) -> float:
        """Work on the migration until it is complete or cannot advance. Returns after how many seconds to try again."""
        missing = self._spaces.missing
        if missing is None:
            return self._poll(model)
        if self._progress is not None:
            outcome = self._fill(model, version, missing)
            if outcome is None:
                return 0.0
            if outcome is SwitchResult.TOO_FEW_VECTORS:
                self._report(state=MigrationState.STUCK)
                return math.inf
            self._report(state=MigrationState.DONE)
        missing.drop_unused(self._stopping.is_set)
        return math.inf

    def _poll(self, model: VectorModel) -> float:
        """Switch search if `fc7 index reembed` has completed the vectors."""
        if self._spaces.target is None:
            return math.inf
        if self._spaces.finish(model) is not SwitchResult.DONE:
            self._progress = None  # no error any more
            return POLL_S
        self._log.info("index migrated", model=model.model)
        self._progress = None
        self._on_switch()
        return math.inf

    def _fill(self, model: VectorModel, version: str, missing: MissingVectors) -> SwitchResult | None:
        """Compute the missing vectors and switch search to them. Returns None if the thread was stopped."""
        done = self._progress.done if self._progress else 0
        self._report(state=MigrationState.RUNNING, detail="")
        while True:
            skipped: dict[int, tuple[str, str]] = {}
            after = 0
            while page := missing.missing_vectors(model, after, _COMMIT_SIZE):
                images, vectors = self._embed(version, page, skipped)
                done += missing.add_vectors(model, images, vectors) if images else 0
                skipped_keys = dict(islice(skipped.values(), _MAX_SKIPPED_KEYS))
                self._report(done=done, skipped=len(skipped), skipped_keys=skipped_keys)
                if self._stopping.is_set():
                    return None
                after = page[-1].id
            outcome = self._spaces.finish(model, frozenset(skipped))
            if outcome is not SwitchResult.INCOMPLETE:
                self._log.info("index migrated", model=model.model, outcome=outcome.value, skipped=len(skipped))
                if outcome is SwitchResult.DONE:
                    self._on_switch()
                return outcome

    def _embed(
        self, version: str, page: Sequence[Unembedded], skipped: dict[int, tuple[str, str]]
    ) -> tuple[list[Unembedded], list[NDArray[np.float32]]]:
        """Return the images of `page` that could be embedded, and their fc7 vectors, float32 [4096]."""
        images, vectors = [], []
        for image in page:
            pixels = decode_picture(image.picture)
            if isinstance(pixels, str):
                skipped[image.id] = (image.key, pixels)
                continue
            latest_start = time.monotonic() + self._run_s / self._share
            self._models.wait_for_quiet(QUIET_S, latest_start, self._stopping.is_set)
            if self._stopping.is_set():
                break
            started = time.monotonic()
            with self._models.use(version, background=True) as serving:
                vectors.append(serving.runner.run(views(pixels)).fc7[0])
            self._run_s = time.monotonic() - started
            images.append(image)
        return images, vectors

    def _report(self, **changes: Any) -> None:
        if self._progress is not None:
            self._progress = replace(self._progress, **changes)
