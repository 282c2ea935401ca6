"""The index follows the model: every image gets its vector of the model that search is to use, in the background.

Promises: one image at a time, from its stored picture, while no request uses a model; where requests never cease, at
most `share` of the time, so that they hardly notice. What is made is kept when it is interrupted, and it goes on from
there. An image whose picture is missing or damaged is counted and named; search goes over without it, unless most
images are so: then it stays where it is.
Does not: load models, or decide which one is to be followed.
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

from index.catalog.spaces import SwitchResult
from index.local.space import SearchSpace
from index.local.spaces import Spaces
from index.records import Unembedded
from model_store.errors import Fc7Error, ImageError
from model_store.image import inspect_and_prepare, views
from service.inference.model_pool import ModelPool

QUIET_S: Final = 2.0  # without a request for so long, the service is taken to be idle
_COMMIT: Final = 16  # images; fewer cost a sync of the disk each
_NAMED: Final = 20
_RETRY_S: Final = 30.0


class FollowState(StrEnum):
    """Where the following of a model stands."""

    RUNNING = "running"
    DONE = "done"
    STUCK = "stuck"  # most images have no picture to embed: search stays with the model before
    WAITING = "waiting"  # something failed; it is tried again


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. total: images that lacked a vector at the start; done: of these, those that have one now.

    skipped: those that cannot get one; `skipped_keys` names the first of them with the reason.
    """

    model: str
    state: FollowState = FollowState.RUNNING
    total: int = 0
    done: int = 0
    skipped: int = 0
    skipped_keys: dict[str, str] = field(default_factory=dict)
    detail: str = ""


class Follower:
    """The thread that follows. `start` and `stop` as often as wanted, by one thread at a time."""

    def __init__(self, spaces: Spaces, models: ModelPool, share: float, log: Any, on_done: Callable[[], None]) -> None:
        """share: of the time, at most, while requests come. on_done: search has gone over; called in the thread."""
        self._spaces, self._models, self._share, self._log, self._on_done = spaces, models, share, log, on_done
        self._stopping = threading.Event()
        self._nudged = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress: Progress | None = None
        self._took = 0.0  # seconds of the last run

    @property
    def progress(self) -> Progress | None:
        """How far the last one is, or None when nothing was ever to be followed."""
        return self._progress

    def start(self, model: str) -> None:
        """Give images their vectors of the loaded version `model`: where search is to go, or where it is already."""
        room = self._spaces.target or self._spaces.active
        missing = next((space.missing_vectors for space in self._spaces.describe() if space.id == room.space.id), 0)
        if not missing and room is self._spaces.active:
            self._progress = None
        else:
            self._progress = Progress(model, total=missing)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(room, model), name="fc7-follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is made is kept."""
        self._stopping.set()
        self._nudged.set()
        self._models.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def nudge(self) -> None:
        """Look again, if it is stuck: images were added."""
        self._nudged.set()

    def _run(self, room: SearchSpace, model: str) -> None:
        while not self._stopping.is_set():
            self._nudged.clear()
            try:
                if self._progress is not None:
                    outcome = self._fill(room, model)
                    if outcome is None:
                        return
                    self._report(state=FollowState.DONE if outcome is SwitchResult.DONE else FollowState.STUCK)
                if self._progress is None or self._progress.state is FollowState.DONE:
                    self._spaces.drop_unused()
                    return
                self._nudged.wait()
            except Fc7Error as error:
                self._log.error("following interrupted", model=model, detail=str(error), exc_info=error)
                self._report(state=FollowState.WAITING, detail=str(error))
                self._nudged.wait(_RETRY_S)

    def _fill(self, room: SearchSpace, model: str) -> SwitchResult | None:
        """Make what is missing, then go over; None when it was stopped."""
        done = self._progress.done if self._progress else 0
        self._report(state=FollowState.RUNNING, detail="")
        while True:
            skipped: dict[int, tuple[str, str]] = {}
            after = 0
            while page := self._spaces.missing_vectors(room, after, _COMMIT):
                images, vectors = self._embed(model, page, skipped)
                given = self._spaces.add_vectors(room, images, vectors) if images else 0
                done += given
                self._report(done=done, skipped=len(skipped), skipped_keys=dict(islice(skipped.values(), _NAMED)))
                if self._stopping.is_set():
                    return None
                after = page[-1].id
            outcome = self._spaces.finish(room, frozenset(skipped))
            if outcome is not SwitchResult.INCOMPLETE:
                self._log.info("index followed", model=model, outcome=outcome.value, skipped=len(skipped))
                if outcome is SwitchResult.DONE:
                    self._on_done()
                return outcome

    def _embed(
        self, model: str, page: Sequence[Unembedded], skipped: dict[int, tuple[str, str]]
    ) -> tuple[list[Unembedded], list[NDArray[np.float32]]]:
        """Return those of `page` that could be embedded, and their fc7, float32 [4096]."""
        images, vectors = [], []
        for image in page:
            try:
                if image.picture is None:
                    skipped[image.id] = (image.key, "no picture of it is kept")
                    continue
                pixels = inspect_and_prepare(image.picture).pixels
            except ImageError as error:
                skipped[image.id] = (image.key, f"its picture is damaged: {error}")
                continue
            self._models.wait_for_quiet(QUIET_S, time.monotonic() + self._took / self._share, self._stopping.is_set)
            if self._stopping.is_set():
                break
            started = time.monotonic()
            with self._models.use(model, background=True) as serving:
                vectors.append(serving.runner.run(views(pixels)).fc7[0])
            self._took = time.monotonic() - started
            images.append(image)
        return images, vectors

    def _report(self, **changes: Any) -> None:
        if self._progress is not None:
            self._progress = replace(self._progress, **changes)
