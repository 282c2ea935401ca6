"""The one object that holds what a running service is made of, opened and closed with the application.

Promises: everything is opened in `State.open` and closed in the reverse order; without a model the service is open too,
and says why it cannot answer; a model whose files are not right, a device that is not there and a locked index are
refusals to start.
Does not: know HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

from index.errors import IndexUnavailableError
from index.interface import ImageIndex
from index.records import IndexOptions
from model_store.artifact import Artifact
from model_store.cores import usable_cores
from model_store.errors import NoActiveModelError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.api.auth import Keyring
from service.api.upload import BodyBudget, BodyLimits
from service.errors import (
    DrainingError,
    MemoryShortError,
    ModelNotLoadedError,
    NotReadyError,
    QueueFullError,
    RunnerDeadError,
)
from service.factory import open_index_of, serving_options
from service.indexing.archive_import import ArchiveImport
from service.indexing.jobs import Jobs
from service.indexing.reembedder import MigrationState
from service.indexing.sync import IndexSync
from service.inference.activation import Activator, changed_files, file_stamps
from service.inference.batcher import Batcher, BatchLimits
from service.inference.memory import available, give_back, needed_to_load
from service.inference.model_pool import ModelPool, Serving
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings

_T = TypeVar("_T")
_INDEX_THREADS = 16  # they mostly wait: for a commit they share, for FAISS


class State:
    """What the routes use. Everything but `settings`, `log`, `metrics`, `keyring`, `store` needs `open`."""

    decode_pool: ThreadPoolExecutor
    index_pool: ThreadPoolExecutor

    def __init__(self, settings: Settings, make_runner: Callable[[Artifact, RunnerOptions], Runner] = Runner) -> None:
        """`make_runner` loads a version: Runner, or what stands before it."""
        self.settings = settings
        self._make_runner = make_runner
        self.log = make_logger(settings.log_format, settings.log_level)
        self.metrics = Metrics()
        self.keyring = Keyring(settings.api_keys, allow_anonymous=settings.allow_anonymous)
        self.store = ModelStore(settings.home, precision=settings.precision)
        self.body_limits = BodyLimits(settings.max_body_bytes, settings.max_images, settings.upload_timeout_s)
        self.budget = BodyBudget(settings.max_buffer_bytes)
        self.in_flight = 0
        self.draining_since: float | None = None
        self.models = ModelPool(self._load, settings.max_loaded)
        self._no_model = NoActiveModelError()
        self._index: ImageIndex | None = None
        self._stamps: dict[str, dict[str, tuple[int, int]]] = {}
        self.index_sync = IndexSync(self.store, self.models, settings.reembed_share, self.log)
        self.activator = Activator(self)
        self._open = ExitStack()
        self.tracing: Tracing | None = None
        self._jobs: Jobs | None = None

    def open(self) -> None:
        """Load the active model and the index. Raises Fc7Error for what must not be served."""
        started = time.perf_counter()
        with ExitStack() as stack:
            if self.settings.otlp_endpoint:
                self.tracing = Tracing(self.settings.otlp_endpoint)
                stack.callback(self.tracing.close)
            stack.callback(self.models.close)
            self.metrics.admitted.set_function(lambda: self.models.admitted)
            threads = self.settings.decode_threads or usable_cores()
            self.decode_pool = stack.enter_context(ThreadPoolExecutor(threads, "fc7-decode"))
            self.index_pool = stack.enter_context(ThreadPoolExecutor(_INDEX_THREADS, "fc7-index"))
            stack.callback(self._close_index)
            stack.callback(self.activator.close)
            try:
                artifact = self.store.active_artifact()
            except NoActiveModelError as error:
                self._no_model = error
                self.log.warning("no model", detail=str(error))
            else:
                self.models.load(artifact)
                self.answer_with(artifact)
            self._open = stack.pop_all()
        self.log.info("opened", model=self.served, seconds=round(time.perf_counter() - started, 2))

    def close(self) -> None:
        """Answer what is queued, and close everything."""
        self._open.close()

    def drain(self) -> None:
        """Refuse new work from now on; what was admitted is still answered."""
        if self.draining_since is None:
            self.draining_since = time.monotonic()
            self.log.info("draining", in_flight=self.in_flight)

    @property
    def dead(self) -> RunnerDeadError | None:
        """Why the model stopped working for good, or None."""
        active = self.models.active
        return active.batcher.death if active else None

    def full(self) -> QueueFullError | None:
        """Return why the active model would admit no image now, or None."""
        active = self.models.active
        return None if active is None else active.batcher.full()

    def why_not_ready(self) -> list[str]:
        """Return what keeps the service from answering, in words; empty when it is ready."""
        reasons = []
        if self.draining_since is not None:
            reasons.append(str(DrainingError()))
        if self.dead is not None:
            reasons.append(str(self.dead))
        if self.models.active is None:
            reasons.append(self._how_to_get_a_model())
        return reasons

    def notes(self) -> list[str]:
        """Return what a ready service cannot do, in words."""
        notes = [self.index_sync.note] if self.index_sync.note else []
        if self._index is not None and self._index.trouble:
            notes.append(f"Milvus did not answer the last time, so search may not: {self._index.trouble}")
        serving = self.models.active
        if serving is not None:
            model = serving.artifact.id
            changed = changed_files(serving.artifact, self._stamps.get(model, {}))
            if changed:
                notes.append(
                    f"{', '.join(changed)} of {model} changed on disk since it was loaded; what answers is what was "
                    f"loaded: fc7 models verify {model}"
                )
        progress = self.index_sync.progress
        if progress is not None and progress.skipped:
            stays = progress.state is MigrationState.STUCK
            notes.append(
                f"{progress.skipped} images keep no picture that {progress.model} could embed: "
                + ("search stays with the model before." if stays else "search does not find them.")
                + " Add them again, or: fc7 index build DIR --rebuild"
            )
        return notes

    @property
    def served(self) -> str | None:
        """Reference of the model that answers ("solar:1"), or None."""
        active = self.models.active
        return None if active is None else active.artifact.id

    def measure_index(self) -> None:
        """Write the size of the index into the metrics."""
        if self._index is None:
            return
        try:
            stats = self._index.stats()
        except IndexUnavailableError:
            return  # the other metrics are wanted all the more
        self.metrics.index_images.set(stats.images)
        self.metrics.index_bytes.labels("disk").set(stats.bytes_on_disk)
        self.metrics.index_bytes.labels("memory").set(stats.bytes_in_memory)

    def serving(self) -> Serving:
        """Return the model that answers, to look at; to run it, `use` it. Raises NotReadyError."""
        active = self.models.active
        if active is None:
            raise NotReadyError(self._how_to_get_a_model())
        return active

    async def artifact(self, reference: str | None) -> Artifact:
        """Return the version that "solar:1" or "solar" (its newest) names, the active one for None.

        Raises NotReadyError, ModelNameError, ModelNotFoundError, ArtifactFormatError.
        """
        active = self.serving().artifact
        if reference is None:
            return active
        loaded = self.models.get(reference)
        if loaded is not None:
            return loaded.artifact
        return await asyncio.to_thread(self.store.resolve, reference, verify=False)

    @asynccontextmanager
    async def use(self, reference: str | None = None) -> AsyncIterator[Serving]:
        """Hold the version that is named, loaded if it is not yet; the active one for None.

        Raises as `artifact` does, TooManyModelsError, and what loading raises.
        """
        artifact = await self.artifact(reference)
        with ExitStack() as stack:
            while True:
                try:
                    serving = stack.enter_context(self.models.use(None if reference is None else artifact.id))
                    break
                except ModelNotLoadedError:
                    await asyncio.to_thread(self.models.load, artifact)
            yield serving

    @asynccontextmanager
    async def use_for(self, fingerprint: str) -> AsyncIterator[Serving]:
        """Hold a loaded version that makes vectors with this fingerprint. Raises ModelNotLoadedError."""
        with self.models.use(self.models.find(fingerprint) or f"of the vectors {fingerprint[:12]}") as serving:
            yield serving

    def index(self) -> ImageIndex:
        """Return the index. Raises NotReadyError."""
        self.serving()
        if self._index is None:
            raise NotReadyError("the index is not open")
        return self._index

    @property
    def jobs(self) -> Jobs:
        """The jobs of this home. Raises NotReadyError, IndexModelError."""
        self.index()
        if self._jobs is None:
            raise NotReadyError("the index is not open")
        return self._jobs

    async def decode(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread for decoding; cancelled while it waits, it never starts."""
        return await asyncio.get_running_loop().run_in_executor(self.decode_pool, work, *arguments)

    async def in_index(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread for the index."""
        return await asyncio.get_running_loop().run_in_executor(self.index_pool, work, *arguments)

    def _how_to_get_a_model(self) -> str:
        return f"{self._no_model} Then start the service again, or POST /v1/models/NAME/VERSION/activate."

    def answer_with(self, artifact: Artifact) -> None:
        """Answer with a loaded version from the next request on, and let the index follow it."""
        self.index_sync.close()  # before anything moves: it must not go over to a model that is leaving
        needed = None
        if self._index is not None:
            needed = self.models.find(self._index.searched.fingerprint)
        self.models.activate(artifact.id, needed=needed)
        device = self.serving().runner.device
        self.metrics.model.clear()
        self.metrics.model.labels(artifact.name, str(artifact.version), artifact.precision, device).set(1)
        if self._index is None:
            options = IndexOptions(artifact.fingerprint, artifact.embedder, migrate=True)
            self._index = open_index_of(self.settings, options)
            self.index_sync.start(self._index, artifact)
            self._jobs = self._open_jobs(self._index)
        else:
            self.index_sync.migrate(artifact)

    def _close_index(self) -> None:
        if self._jobs is not None:
            self._jobs.close()
        self.index_sync.close()
        if self._index is not None:
            self._index.close()

    def _load(self, artifact: Artifact) -> Serving:
        settings = self.settings
        free = available()
        options = serving_options(settings, artifact, free)
        needed = needed_to_load(artifact, options.streams)
        if self.models.ids() and free is not None and free < needed:  # the first one has no choice
            raise MemoryShortError(artifact.id, needed, free)
        self._stamps[artifact.id] = file_stamps(artifact)
        runner = self._make_runner(artifact, options)
        try:
            runner.warm_up((1, settings.max_batch))
        except BaseException:
            runner.close()
            raise
        give_back()  # what arranging the weights took
        limits = BatchLimits(settings.max_batch, settings.max_delay_ms / 1000, settings.queue_size, settings.deadline_s)
        batcher = Batcher(
            runner.run,
            limits,
            run_beside=runner.run_beside,
            streams=runner.streams,
            cores=runner.options.threads if runner.device == "cpu" else None,
            on_run=self.metrics.ran,
            on_death=lambda error: self._on_death(artifact.id, error),
        )
        return Serving(runner.artifact, runner, batcher)

    def _open_jobs(self, index: ImageIndex) -> Jobs:
        return Jobs(
            self.settings.home / "jobs",
            ArchiveImport(self.settings, index, self.models, self.decode_pool).run,
            on_error=lambda job, error: self.log.error("job failed", job=job, exc_info=error),
        )

    def _on_death(self, model: str, error: RunnerDeadError) -> None:
        self.log.error("model dead", model=model, detail=error.reason, exc_info=error.__cause__)
        self.models.retire(model)  # a named one is loaded again when it is named again
