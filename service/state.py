"""State of a running service: `Resources` is what the process owns, and `State` adds what requests use.

Guarantees: resources are opened with the application and closed in reverse order. Without an active model the service
still starts, and reports how to get one. A corrupt model, a missing device or a locked index prevents the start.
Out of scope: HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from index.errors import IndexUnavailableError
from index.interface import ImageIndex
from index.projection.maps import Maps
from index.records import IndexOptions, IndexStats
from model_store.artifact import Artifact
from model_store.decoder.decoder import Event
from model_store.decoder.priority_pool import PriorityPool
from model_store.errors import NoActiveModelError
from model_store.runtime.runner import Runner
from service.backup_job import BackupJob
from service.errors import DrainingError, ModelNotLoadedError, NotReadyError, QueueFullError, RunnerDeadError
from service.factory import decoder_of, open_index_of, outdated_note, runner_options, store_of
from service.indexing.archive_import import ArchiveImport
from service.indexing.classification import ArchiveClassification
from service.indexing.errors import JobStoreError
from service.indexing.head import HeadFit
from service.indexing.job import JobKind, JobState
from service.indexing.jobs import Jobs
from service.indexing.map_job import MapJob
from service.indexing.reembedder import MigrationState
from service.indexing.versions import VersionManager
from service.indexing.work import Work
from service.inference.admission import BatchLimits
from service.inference.embed import Embedder
from service.inference.loader import MakeRunner, ModelLoader, changed_files
from service.inference.model_pool import ModelPool, Serving
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings

_T = TypeVar("_T")
_DECODE_SHARE = 0.5  # of the deadline, for waiting until an expensive image is decoded
_INDEX_THREADS = 16  # most of the time these threads wait for a commit or for FAISS


class Resources:
    """What the process owns: models, index, jobs and thread pools. They can be used after `open`."""

    def __init__(self, settings: Settings, make_runner: MakeRunner, lost_log_lines: Callable[[], int]) -> None:
        self.settings = settings
        self.log = make_logger(settings.log_format, settings.log_level)
        self.metrics = Metrics(lost_log_lines)
        self.tracing: Tracing | None = None
        self.store = store_of(settings)
        self._loader = ModelLoader(
            make_runner,
            runner_options(settings),
            BatchLimits(
                settings.max_batch, settings.max_delay_ms / 1000, settings.queue_size, deadline_s=settings.deadline_s
            ),
            on_run=self.metrics.record_run,
            on_death=self._on_death,
        )
        self.models = ModelPool(self._load, settings.max_loaded)
        threads = settings.threads_to_decode
        self.decode_pool = PriorityPool(threads, "fc7-decode")
        self.decoder = decoder_of(settings, workers=max(1, threads // 2), on_event=self._count_decode_failure)
        # Images of jobs are decoded here, so that an expensive one does not take a thread from the requests.
        self.import_pool = ThreadPoolExecutor(threads, "fc7-import")
        self.index_pool = ThreadPoolExecutor(_INDEX_THREADS, "fc7-index")
        self._outdated = 0  # images of an earlier preparation, when they were last counted
        self.duplicates = threading.Lock()  # held by the only search for near-duplicates
        self.maps = Maps(settings.home / "maps")
        self._jobs: Jobs | None = None
        self.versions = VersionManager(
            self.store,
            self.models,
            self._open_index,
            self._close_index,
            on_deployed=self._on_deployed,
            reembed_share=settings.reembed_share,
            log=self.log,
        )
        self.no_model = NoActiveModelError()
        self._stack = ExitStack()

    def open(self) -> None:
        """Load the active model and open the index. Raises Fc7Error if the service must not start."""
        started = time.perf_counter()
        with ExitStack() as stack:
            if self.settings.otlp_endpoint:
                self.tracing = Tracing(self.settings.otlp_endpoint)
                stack.callback(self.tracing.close)
            stack.callback(self.models.close)
            self.metrics.admitted.set_function(lambda: self.models.admitted)
            stack.enter_context(self.decode_pool)
            stack.enter_context(self.decoder)
            stack.enter_context(self.import_pool)
            self.metrics.decoding.labels("running").set_function(lambda: self.decoder.running)
            self.metrics.decoding.labels("waiting").set_function(
                lambda: self.decode_pool.waiting + self.decoder.waiting
            )
            stack.enter_context(self.index_pool)
            stack.callback(self.versions.close)
            try:
                self.versions.open()
            except NoActiveModelError as error:
                self.no_model = error
                self.log.warning("no model", detail=str(error))
            self._stack = stack.pop_all()
        self.log.info("opened", model=self.served, seconds=round(time.perf_counter() - started, 2))

    def close(self) -> None:
        """Answer the queued images and close everything."""
        self._stack.close()

    @property
    def served(self) -> str | None:
        """Reference of the active model ("solar:1"), or None."""
        active = self.versions.active
        return None if active is None else active.artifact.id

    def _open_index(self, options: IndexOptions) -> ImageIndex:
        """Open the index and its jobs."""
        device_memory = self.settings.cuda_index_mb * 1_000_000
        options = replace(options, device=self.settings.device, device_memory=device_memory)
        index = open_index_of(self.settings, options)
        try:
            self._outdated = index.stats().outdated
            self._jobs = Jobs(self.settings.home / "jobs", self._works(index), self.log)
        except BaseException:
            index.close()
            raise
        return index

    def _works(self, index: ImageIndex) -> Mapping[JobKind, Work]:
        """Return what each kind of job does."""
        return {
            JobKind.ARCHIVE: ArchiveImport(self.settings, index, self.models, self.decoder, self.import_pool),
            JobKind.MAP: MapJob(index, self.maps),
            JobKind.CLASSIFY: ArchiveClassification(
                self.settings, self.models, self.decoder, self.import_pool, self._find_artifact
            ),
            JobKind.HEAD: HeadFit(index, self.store, self._find_artifact),
            JobKind.BACKUP: BackupJob(self.settings.home, with_index=self.settings.index_uri is None),
        }

    def _find_artifact(self, reference: str | None) -> Artifact:
        """Return the version named by "solar:1" or "solar" (its newest version); the active one for None.

        Raises NotReadyError, ModelNameError, ModelNotFoundError, ArtifactFormatError.
        """
        if reference is None:
            active = self.versions.active
            if active is None:
                raise NotReadyError(str(self.no_model))
            return active.artifact
        loaded = self.models.named(reference)
        return self.store.resolve(reference, verify=False) if loaded is None else loaded.artifact

    def _close_index(self, index: ImageIndex) -> None:
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        index.close()

    def _on_deployed(self, serving: Serving) -> None:
        artifact = serving.artifact
        self.metrics.model.clear()
        self.metrics.model.labels(artifact.name, artifact.version, artifact.precision, serving.runner.device).set(1)

    def _load(self, artifact: Artifact) -> Serving:
        serving = self._loader.load(artifact, check_memory=bool(self.models.ids()))  # the first one must be loaded
        self.metrics.drift.add_model(serving.artifact, serving.reference)
        return serving

    def _count_decode_failure(self, event: Event) -> None:
        self.metrics.decode_failures.labels(event).inc()

    def _on_death(self, key: str, error: RunnerDeadError) -> None:
        self.log.error("model dead", model=key, detail=error.reason, exc_info=error.__cause__)
        active = self.versions.active
        if active is None or active.key != key:
            self.models.retire(key)  # the next request that needs it loads it again


class State(Resources):
    """What requests use: the resources, whether they may be used now, and threads to use them in."""

    def __init__(
        self,
        settings: Settings,
        make_runner: MakeRunner = Runner,
        lost_log_lines: Callable[[], int] = lambda: 0,
    ) -> None:
        """make_runner: creates the Runner of a version (tests pass a subclass). lost_log_lines: for the metrics."""
        super().__init__(settings, make_runner, lost_log_lines)
        self.embedder = Embedder(self.decode_pool, self.decoder, self.metrics, settings.deadline_s * _DECODE_SHARE)
        self.in_flight = 0
        self.draining_since: float | None = None

    def drain(self) -> None:
        """Refuse new work from now on; admitted requests are still answered."""
        if self.draining_since is None:
            self.draining_since = time.monotonic()
            self.log.info("draining", in_flight=self.in_flight)

    @property
    def dead(self) -> RunnerDeadError | None:
        """Why the active model stopped working permanently, or None."""
        active = self.versions.active
        return active.batcher.death if active else None

    def refusal(self) -> QueueFullError | None:
        """Return the error that a request of one image to the active model would get now, or None."""
        active = self.versions.active
        return None if active is None else active.batcher.refusal()

    def why_not_ready(self) -> list[str]:
        """Return the reasons why the service cannot answer; an empty list if it is ready."""
        reasons = []
        if self.draining_since is not None:
            reasons.append(str(DrainingError()))
        if self.dead is not None:
            reasons.append(str(self.dead))
        stuck = self.decode_pool.busy_seconds()
        if stuck > self.settings.deadline_s:
            reasons.append(
                f"All {self.decode_pool.size} decode threads have been busy for {stuck:.0f} s. Restart the service if "
                "this does not end."
            )
        if self.versions.active is None:
            reasons.append(self._how_to_get_a_model())
        return reasons

    def notes(self) -> list[str]:
        """Return the limitations of a service that is ready."""
        versions, notes = self.versions, self.versions.notes()
        index, serving, progress = versions.index, versions.active, versions.progress
        if index is not None and index.trouble:
            notes.append(f"The last call to Milvus failed, so searches may fail: {index.trouble}")
        if index is not None and self._outdated:
            notes.append(outdated_note(self._outdated))
        if serving is not None and (changed := changed_files(serving)):
            model = serving.artifact.id
            notes.append(
                f"{', '.join(changed)} of {model} changed on disk since the version was loaded. The service still "
                f"answers with the loaded version. Check the files: fc7 models verify {model}"
            )
        if progress is not None and progress.skipped:
            stuck = progress.state is MigrationState.STUCK
            effect = "Search stays with the previous model." if stuck else "Search does not find them."
            notes.append(
                f"{progress.skipped} images have no stored picture that {progress.model} could embed. {effect} "
                "Add them again, or rebuild the index: fc7 index build DIR --rebuild"
            )
        if self._jobs is not None:
            notes += self._jobs.notes()
        return notes

    def index_stats(self, index: ImageIndex) -> IndexStats:
        """Return the sizes and counts of the index, and remember those that `notes` mentions."""
        stats = index.stats()
        self._outdated = stats.outdated
        return stats

    def measure_index(self) -> None:
        """Write the size of the index, its migration and its jobs into the metrics."""
        index = self.versions.index
        if index is None:
            return
        try:
            stats = self.index_stats(index)
            missing = self._missing_vectors(index)
            jobs = Counter() if self._jobs is None else self._jobs.counts()
        except (IndexUnavailableError, JobStoreError):
            return  # the other metrics are still reported
        self.metrics.index_images.set(stats.images)
        self.metrics.missing_vectors.set(missing)
        for kind, state in itertools.product(JobKind, JobState):
            self.metrics.jobs.labels(kind, state).set(jobs[kind, state])
        self.metrics.index_bytes.labels("disk").set(stats.bytes_on_disk)
        self.metrics.index_bytes.labels("memory").set(stats.bytes_in_memory)
        self.metrics.index_bytes.labels("device").set(stats.device.bytes if stats.device else 0)
        fast = stats.fast
        self.metrics.index_fast_recall.set(math.nan if fast is None or fast.recall is None else fast.recall)
        self.metrics.index_fast_age.set(math.nan if fast is None else time.time() - fast.learned)

    def _missing_vectors(self, index: ImageIndex) -> int:
        """Return how many vectors the running migration has to compute; 0 without a migration."""
        target, progress = index.spaces.target, self.versions.progress
        if target is None and (progress is None or progress.state is MigrationState.DONE):
            return 0
        # Without a target, search uses the new vectors already: it switches back to kept ones immediately.
        spaces = index.spaces.describe()
        return sum(space.missing_vectors for space in spaces if (space.active if target is None else space.target))

    def serving(self) -> Serving:
        """Return the active model for inspection; to run it, use `use`. Raises NotReadyError."""
        active = self.versions.active
        if active is None:
            raise NotReadyError(self._how_to_get_a_model())
        return active

    async def artifact(self, reference: str | None) -> Artifact:
        """Return the version named by "solar:1" or "solar" (its newest version); the active one for None.

        Raises NotReadyError, ModelNameError, ModelNotFoundError, ArtifactFormatError.
        """
        active = self.serving().artifact
        if reference is None:
            return active
        loaded = self.models.named(reference)
        return loaded.artifact if loaded is not None else await asyncio.to_thread(self._find_artifact, reference)

    @asynccontextmanager
    async def use(self, reference: str | None = None) -> AsyncIterator[Serving]:
        """Use the named version inside the block, loading it if necessary; the active one for None.

        Raises as `artifact` does, TooManyModelsError, and the errors of loading.
        """
        artifact = await self.artifact(reference)
        with ExitStack() as stack:
            while True:
                serving = self.serving() if reference is None else self.models.named(artifact.id)
                if serving is None:
                    serving = await asyncio.to_thread(self.models.load, artifact)
                try:
                    stack.enter_context(self.models.use(serving.key))
                    break
                except ModelNotLoadedError:
                    if reference is None and serving is self.versions.active:
                        raise  # the service is being closed; otherwise another version was activated meanwhile
            yield serving

    @asynccontextmanager
    async def use_for(self, fingerprint: str) -> AsyncIterator[Serving]:
        """Use the version that computed the vectors with this fingerprint inside the block.

        Raises ModelNotLoadedError if search does not need it any more, and the errors of loading it.
        """
        key = self.models.find(fingerprint)
        if key is None and fingerprint in [model.fingerprint for model in self.index().spaces.required]:
            await asyncio.to_thread(self.versions.load_for, fingerprint)
            key = self.models.find(fingerprint)
        with self.models.use(key or f"with fingerprint {fingerprint[:12]}") as serving:
            yield serving

    def index(self) -> ImageIndex:
        """Return the index. Raises NotReadyError."""
        self.serving()
        index = self.versions.index
        if index is None:
            raise NotReadyError("The index is not open.")
        return index

    @property
    def jobs(self) -> Jobs:
        """The jobs. Raises NotReadyError."""
        self.index()
        if self._jobs is None:
            raise NotReadyError("The index is not open.")
        return self._jobs

    async def decode(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a decoding thread. If cancelled while it is queued, it never starts."""
        return await asyncio.get_running_loop().run_in_executor(self.decode_pool, work, *arguments)

    async def in_index(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread for index operations."""
        return await asyncio.get_running_loop().run_in_executor(self.index_pool, work, *arguments)

    def _how_to_get_a_model(self) -> str:
        return f"{self.no_model} Then restart the service, or send POST /v1/models/NAME/VERSION/activate."
