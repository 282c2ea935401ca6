"""Add the images of a source to the index; the actors of a Ray cluster embed them, and this process writes.

Actors only read and compute, and this process adds their results with `add_many`. So there is one way to commit, for a
local index and for Milvus: no write is left incomplete when a worker dies, and the counts are exact.

Guarantees: committed images stay in the index whatever fails, and the same call resumes from there; the files of a
worker that dies are given to another one; a file that kills its workers is skipped with this reason; every listed file
is counted exactly once.
Out of scope: deleting images whose files were deleted; more writes than one process can do (see `docs/scale.md`).
References: Ray's documentation of `Dataset.map_batches` with `ActorPoolStrategy`, and of `DataContext`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from index.bulk.metadata import ImageMetadata, add_with_metadata
from index.bulk.pipeline import batches
from index.bulk.ray.cluster import Cluster, Placement, first_line
from index.bulk.ray.worker import EMBEDDED, FAILED, IMAGE_COLUMNS, UNCHANGED, Embedder, WorkerPlan
from index.bulk.report import BuildReport, count_outcomes, interruptible
from index.bulk.sources import NO_IMAGES, Source
from index.errors import ClusterError, FolderError, ImageIndexError, InvalidKeyError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage, check_key
from model_store.artifact import Artifact
from model_store.image_files import SkipKind, Skipped, escape_name
from model_store.transfer.remote_artifact import ship

if TYPE_CHECKING:
    import pyarrow

_FILES_PER_ROUND = (
    50_000  # files that are listed, looked up and distributed at a time, to bound the memory of this process
)
_BATCHES_PER_BLOCK = 4
_LOOKUP_SIZE = 1_000
_MAX_RETRIES = 3
_BLOCK_RETRIES = 1  # then each of its files is tried alone
_MAX_FAILED_BLOCKS = 64
_STALL_TIMEOUT_S = 600.0


@dataclass(slots=True)
class WorkerStats:
    """Files processed by one worker, and the seconds that this took."""

    images: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class ClusterReport(BuildReport):
    """A BuildReport with the statistics of each worker ("host/process device"). total: 0 until all are counted."""

    workers: dict[str, WorkerStats] = field(default_factory=dict)


class _Actor:
    """An actor: an `Embedder` with the model version from the shared memory of its node."""

    def __init__(self, plan: WorkerPlan, version: Any) -> None:
        import ray  # noqa: PLC0415 - this runs on a node of the cluster

        self._embedder = Embedder(plan, ray.get(version))

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        return self._embedder.embed(block["name"].to_pylist(), block["known"].to_pylist())


class ClusterBuild:
    """One build of an index from a source. Call `run` once."""

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        index: ImageIndex,
        artifact: Artifact,
        *,
        plan: WorkerPlan,
        placement: Placement,
        key_prefix: str = "",
        metadata: ImageMetadata | None = None,
        progress: Callable[[ClusterReport], None] = lambda _: None,
    ) -> None:
        """plan: of the workers; a worker gets, and a commit has, four batches. key_prefix: a key is this prefix and the
        path within the source. metadata: of the images; by default none. progress: called after each commit with the
        report so far.
        """
        self._cluster, self._source, self._index, self._plan = cluster, source, index, plan
        self._metadata = metadata or ImageMetadata()
        self._placement, self._prefix, self._progress = placement, key_prefix, progress
        self._version = cluster.ray.put(ship(artifact))
        self.report = ClusterReport()

    def run(self) -> ClusterReport:
        """Add every image of the source to the index; those already indexed with the same bytes and model are skipped.

        Ctrl-C ends the build; what was committed stays. Raises FolderError for a source without images, SourceError,
        ClusterError if the cluster fails, and errors of the index.
        """
        report = self.report
        threading.Thread(target=self._count_files, daemon=True).start()
        with interruptible(report), ThreadPoolExecutor(1) as executor:
            listing = self._source.list(report.skip)
            names = list(islice(listing, _FILES_PER_ROUND))
            if not names:
                raise FolderError(self._source.shown, NO_IMAGES)
            while names:
                next_names = executor.submit(lambda: list(islice(listing, _FILES_PER_ROUND)))
                self._add(names)
                names = next_names.result()
            report.total = report.seen
        return report

    def _count_files(self) -> None:
        try:
            skipped = BuildReport()
            total = sum(1 for _ in self._source.list(skipped.skip)) + skipped.seen
        except ImageIndexError:
            return  # `run` lists the source too, and raises the error
        self.report.total = max(total, self.report.total)

    def _add(self, names: Sequence[str]) -> None:
        """Embed these files and add them to the index, each exactly once."""
        valid = []
        for name in names:
            try:
                check_key(self._prefix + name)
            except InvalidKeyError as error:
                self._skip(name, str(error), SkipKind.INVALID_KEY)
            else:
                valid.append(name)
        known: dict[str, str] = {}
        for part in batches(valid, _LOOKUP_SIZE):
            known |= self._index.lookup([self._prefix + name for name in part])
        pending = {name: known.get(self._prefix + name, "") for name in valid}
        self._process(pending, _BATCHES_PER_BLOCK * self._plan.batch_size)
        if len(pending) == len(valid) and valid:
            raise ClusterError(
                self._cluster.address,
                "All workers died before they returned a result. The usual cause is a lack of memory (an actor needs "
                "about 1 GB): use fewer actors (--actors), and see the logs of Ray.",
            )
        if pending:  # the files of failed blocks: at least one in each block killed its workers
            self._process(pending, 1)
        for name in pending:
            self._skip(
                name, f"The workers that read this file died, {_MAX_RETRIES + 1} times in a row.", SkipKind.NOT_EMBEDDED
            )
        self._progress(self.report)

    def _process(self, pending: dict[str, str], block_size: int) -> None:
        """Hand out the pending files in blocks, write the results, and remove the written files from `pending`."""
        for table in self._results(list(pending.items()), block_size):
            rows = [row for row in table.to_pylist() if pending.pop(row["name"], None) is not None]
            self._write(rows)
            self._progress(self.report)

    def _results(self, files: Sequence[tuple[str, str]], block_size: int) -> Iterator[pyarrow.Table]:
        """Yield the results of the actors. Raises ClusterError."""
        import pyarrow  # noqa: PLC0415 - comes with Ray Data

        data = self._cluster.ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = _MAX_FAILED_BLOCKS
        context.execution_no_progress_timeout_s = _STALL_TIMEOUT_S
        block_size = min(block_size, -(-len(files) // (2 * self._placement.actors)))  # few files: use every actor
        schema = pyarrow.schema([("name", pyarrow.string()), ("known", pyarrow.string())])
        blocks = [
            pyarrow.Table.from_pylist([{"name": name, "known": sha256} for name, sha256 in block], schema)
            for block in batches(files, block_size)
        ]
        # The blocks that are queued at a dying actor fail with it.
        queued, retries = (1, _MAX_RETRIES) if block_size == 1 else (2, _BLOCK_RETRIES)
        with warnings.catch_warnings():
            # There is no other way to limit the retries; without a limit the pool retries forever.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            results = data.from_arrow(blocks).map_batches(
                _Actor,
                fn_constructor_args=(self._plan, self._version),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self._placement.threads,
                num_gpus=self._placement.gpus,
                compute=data.ActorPoolStrategy(size=self._placement.actors, max_tasks_in_flight_per_actor=queued),
                max_task_retries=retries,
            )
        try:
            yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
        except Exception as error:  # Ray's errors have no common base class
            raise ClusterError(
                self._cluster.address,
                f"The build failed ({type(error).__name__}: {first_line(error)}). All images counted so far are in "
                "the index; run the same command again to resume.",
            ) from error

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add the embedded images to the index, and count all rows in the report."""
        report = self.report
        for row in rows:
            if row["status"] == FAILED:
                raise ClusterError(self._cluster.address, f"Worker {row['worker']} cannot embed: {row['reason']}")
            stats = report.workers.setdefault(row["worker"], WorkerStats())
            stats.images += 1
            stats.seconds += row["seconds"]
            if row["status"] not in (EMBEDDED, UNCHANGED):
                self._skip(row["name"], row["reason"], SkipKind(row["kind"]))
        unchanged = [self._prefix + row["name"] for row in rows if row["status"] == UNCHANGED]
        given = {self._prefix + row["name"]: values for row in rows if (values := self._metadata.of(row["name"]))}
        images = [self._new_image(row) for row in rows if row["status"] == EMBEDDED]
        outcomes, changed = add_with_metadata(self._index, images, given, unchanged)
        report.metadata_changed += changed
        count_outcomes(report, [*outcomes, *[AddOutcome.UNCHANGED] * len(unchanged)])

    def _new_image(self, row: dict[str, Any]) -> NewImage:
        vector = np.frombuffer(row["vector"], np.float16).astype(np.float32)
        columns = {name: row[name] for name in IMAGE_COLUMNS}
        return NewImage(key=self._prefix + row["name"], metadata=None, vector=vector, **columns)

    def _skip(self, name: str, reason: str, kind: SkipKind) -> None:
        """Record the reason, and count the file as seen. name: escaped."""
        self.report.skip(Skipped(f"{escape_name(self._source.shown)}/{name}", reason, kind))
