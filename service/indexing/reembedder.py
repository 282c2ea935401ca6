"""Compute the missing vectors of the active model in the background, then let search use them.

Guarantees: images are embedded one at a time from their stored pictures, while no request uses a model. If requests
never pause, re-embedding takes at most `share` of the time, so that they are hardly delayed. Computed vectors are kept
if it is interrupted, and it resumes from there. An image without a usable picture is counted and named, and search
switches without it. If most images have none, search keeps using the previous vectors.
Out of scope: loading models, and choosing the model.
"""

from __future__ import annotations

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
from index.interface import MissingVectors, VectorSpaces
from index.records import Unembedded, VectorModel
from model_store.errors import Fc7Error
from model_store.image import views
from service.inference.model_pool import ModelPool

QUIET_S: Final = 2.0  # after this time without requests, the service counts as idle
_COMMIT_SIZE: Final = 16  # images; every commit waits for the disk
_MAX_SKIPPED_KEYS: Final = 20
_RETRY_S: Final = 30.0


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
    """The thread that computes missing vectors. Can be started and stopped repeatedly, by one thread at a time."""

    def __init__(
        self,
        spaces: VectorSpaces,
        missing: MissingVectors,
        models: ModelPool,
        *,
        share: float,
        log: Any,
        on_switch: Callable[[], None],
    ) -> None:
        """share: largest share of the time while requests arrive. on_switch: called in the thread after a switch."""
        self._spaces, self._missing, self._models = spaces, missing, models
        self._share, self._log, self._on_switch = share, log, on_switch
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress: Progress | None = None
        self._run_s = 0.0  # duration of the last run of the model

    @property
    def progress(self) -> Progress | None:
        """The progress of the last migration, or None if no vectors were missing."""
        return self._progress

    def start(self, model: str) -> None:
        """Compute the missing vectors with the loaded version `model`, in the target space or else the searched one."""
        space = self._spaces.target or self._spaces.searched
        spaces = self._spaces.describe()
        missing = next((each.missing_vectors for each in spaces if each.fingerprint == space.fingerprint), 0)
        self._progress = Progress(model, total=missing) if missing or self._spaces.target is not None else None
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(space, model), name="fc7-migrate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Vectors computed so far are kept."""
        self._stopping.set()
        self._woken.set()
        self._models.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Try a stuck migration again: images were added."""
        self._woken.set()

    def _run(self, space: VectorModel, model: str) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                if self._progress is not None:
                    outcome = self._fill(space, model)
                    if outcome is None:
                        return
                    self._report(state=MigrationState.DONE if outcome is SwitchResult.DONE else MigrationState.STUCK)
                if self._progress is None or self._progress.state is MigrationState.DONE:
                    self._missing.drop_unused()
                    return
                self._woken.wait()
            except Fc7Error as error:
                self._log.error("migration interrupted", model=model, detail=str(error), exc_info=error)
                self._report(state=MigrationState.WAITING, detail=str(error))
                self._woken.wait(_RETRY_S)

    def _fill(self, space: VectorModel, model: str) -> SwitchResult | None:
        """Compute the missing vectors and switch search to them. Returns None if the thread was stopped."""
        done = self._progress.done if self._progress else 0
        self._report(state=MigrationState.RUNNING, detail="")
        while True:
            skipped: dict[int, tuple[str, str]] = {}
            after = 0
            while page := self._missing.missing_vectors(space, after, _COMMIT_SIZE):
                images, vectors = self._embed(model, page, skipped)
                done += self._missing.add_vectors(space, images, vectors) if images else 0
                skipped_keys = dict(islice(skipped.values(), _MAX_SKIPPED_KEYS))
                self._report(done=done, skipped=len(skipped), skipped_keys=skipped_keys)
                if self._stopping.is_set():
                    return None
                after = page[-1].id
            outcome = self._spaces.finish(space, frozenset(skipped))
            if outcome is not SwitchResult.INCOMPLETE:
                self._log.info("index migrated", model=model, outcome=outcome.value, skipped=len(skipped))
                if outcome is SwitchResult.DONE:
                    self._on_switch()
                return outcome

    def _embed(
        self, model: str, page: Sequence[Unembedded], skipped: dict[int, tuple[str, str]]
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
            with self._models.use(model, background=True) as serving:
                vectors.append(serving.runner.run(views(pixels)).fc7[0])
            self._run_s = time.monotonic() - started
            images.append(image)
        return images, vectors

    def _report(self, **changes: Any) -> None:
        if self._progress is not None:
            self._progress = replace(self._progress, **changes)
