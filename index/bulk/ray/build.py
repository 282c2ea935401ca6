"""A source of images into the index, embedded by the actors of a Ray cluster: many machines, one writer.

Actors only read and compute; this process writes what they return, by `add_many`. So there is one path to a commit,
for an index of this machine as for a shared one: nothing is half written when a worker dies, and the counts are exact.
Promises: what was committed stays whatever dies, and the same call goes on from there; a worker's files are given to
another when it dies; a file whose reading kills its workers is skipped with that as its reason; every listed file is
counted once.
Does not: delete images whose files are gone, write faster than one process can (`docs/scale.md` says what then).
Source: Ray's documentation of `Dataset.map_batches` with `ActorPoolStrategy`, and of `DataContext`.
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

from index.bulk.ray.cluster import Cluster, Placement
from index.bulk.ray.worker import EMBEDDED, FAILED, UNCHANGED, Embedder, WorkerPlan, code_identity
from index.bulk.report import BuildReport, interruptible
from index.bulk.sources import Source
from index.errors import ClusterError, FolderError, ImageIndexError, InvalidKeyError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage, check_key
from model_store.artifact import Artifact
from model_store.image import DEFAULT_MAX_PIXELS
from model_store.remote_artifact import ship
from model_store.runtime.options import RunnerOptions

if TYPE_CHECKING:
    import pyarrow

PORTION = 50_000
"""Files that are listed, compared with the index and handed out at a time: what this process holds in memory."""
BATCHES_A_BLOCK = 4
_LOOKUP = 1_000
_TRIES = 3
_MOST_BROKEN_BLOCKS = 64


@dataclass(slots=True)
class WorkerStats:
    """What one worker did: files, and the seconds that it was at them."""

    images: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class ClusterReport(BuildReport):
    """What became of a source's images, and what each worker ("host/process device") did of it.

    total: 0 until all are counted.
    """

    workers: dict[str, WorkerStats] = field(default_factory=dict)


class _Actor:
    """What Ray makes on each seat: an `Embedder` over the version that lies in the node's shared memory."""

    def __init__(self, plan: WorkerPlan, version: Any) -> None:
        import ray  # noqa: PLC0415 - this runs where Ray runs

        self._embedder = Embedder(plan, ray.get(version))

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        return self._embedder.embed(block["name"].to_pylist(), block["known"].to_pylist())


class ClusterBuild:
    """One run over a source. `run` does it."""

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        index: ImageIndex,
        artifact: Artifact,
        *,
        options: RunnerOptions,
        placement: Placement,
        batch_size: int = 32,
        key_prefix: str = "",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        keep_pictures: bool = True,
        patience_s: float = 600.0,
        progress: Callable[[ClusterReport], None] | None = None,
    ) -> None:
        """batch_size: images in one run; four times as many are a worker's portion and a commit. key_prefix: put before
        the path within the source, and both are the key. patience_s: how long nothing may come back. The others are as
        in `build_index`.
        """
        self._cluster, self._source, self._index = cluster, source, index
        self._seats, self._block, self._prefix, self._patience = (
            placement,
            BATCHES_A_BLOCK * batch_size,
            key_prefix,
            patience_s,
        )
        self._progress = progress
        self._plan = WorkerPlan(
            place=source.place,
            code=code_identity(),
            options=options,
            batch_size=batch_size,
            threads=placement.threads,
            max_pixels=max_pixels,
            keep_pictures=keep_pictures,
        )
        self._version = cluster.ray.put(ship(artifact))
        self.report = ClusterReport()

    def run(self) -> ClusterReport:
        """Add every image of the source to the index; what it has already, bytes and model alike, is passed by.

        Ctrl-C ends it with what was committed. Raises FolderError for a source without images, SourceError,
        ClusterError when the cluster cannot go on, and what stops the index, with what was committed before kept.
        """
        report = self.report
        counted = threading.Thread(target=self._count, daemon=True)
        counted.start()
        with interruptible(report), ThreadPoolExecutor(1) as executor:
            names = self._source.list()
            portion = list(islice(names, PORTION))
            if not portion:
                raise FolderError(
                    self._source.place,
                    "has no images: none of its files ends in .jpg, .png, .webp, .gif, .bmp or .tiff.",
                )
            while portion:
                following = executor.submit(lambda: list(islice(names, PORTION)))
                self._do(portion)
                portion = following.result()
            report.total = report.seen
        return report

    def _count(self) -> None:
        try:
            total = sum(1 for _ in self._source.list())
        except ImageIndexError:
            return  # the listing that is worked on meets it too
        self.report.total = max(total, self.report.total)

    def _do(self, names: Sequence[str]) -> None:
        """Embed these files and write them, each of them once."""
        good = [name for name in names if self._has_key(name)]
        known: dict[str, str] = {}
        for start in range(0, len(good), _LOOKUP):
            known |= self._index.lookup([self._prefix + name for name in good[start : start + _LOOKUP]])
        pending = {name: known.get(self._prefix + name, "") for name in good}
        self._pass(pending, self._block)
        if len(pending) == len(good) and good:
            raise ClusterError(
                self._cluster.address,
                "its workers died again and again before they returned anything. Most often memory is short (an actor "
                "wants about 1 GB): try fewer with --actors, and see Ray's logs",
            )
        if pending:  # the files of blocks that were given up: one of each killed its workers
            self._pass(pending, 1)
        for name in pending:
            self._skip(name, f"the workers that were to read it died, {_TRIES + 1} times in a row")
        self._show(len(pending))

    def _has_key(self, name: str) -> bool:
        try:
            check_key(self._prefix + name)
        except InvalidKeyError as error:
            self._skip(name, str(error))
            self._show(1)
            return False
        return True

    def _pass(self, pending: dict[str, str], block: int) -> None:
        """Hand out what is pending in blocks of so many, and take out of it what was written."""
        for table in self._answers(list(pending.items()), block):
            rows = [row for row in table.to_pylist() if pending.pop(row["name"], None) is not None]
            self._write(rows)
            self._show(len(rows))

    def _answers(self, files: Sequence[tuple[str, str]], block: int) -> Iterator[pyarrow.Table]:
        import pyarrow  # noqa: PLC0415 - comes with Ray Data

        data = self._cluster.ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = _MOST_BROKEN_BLOCKS
        context.execution_no_progress_timeout_s = self._patience
        block = min(block, -(-len(files) // (2 * self._seats.actors)))  # of few files, some for every actor
        blocks = [
            pyarrow.table(
                {"name": [name for name, _ in part], "known": [sha256 for _, sha256 in part]},
                pyarrow.schema([("name", pyarrow.string()), ("known", pyarrow.string())]),
            )
            for part in (files[start : start + block] for start in range(0, len(files), block))
        ]
        waiting = 1 if block == 1 else 2  # a dying worker takes what waits for it along
        with warnings.catch_warnings():
            # The number of tries has no other place, and without it the pool would try for ever.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            answers = data.from_arrow(blocks).map_batches(
                _Actor,
                fn_constructor_args=(self._plan, self._version),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self._seats.threads,
                num_gpus=self._seats.gpus,
                compute=data.ActorPoolStrategy(size=self._seats.actors, max_tasks_in_flight_per_actor=waiting),
                max_task_retries=_TRIES,
            )
        tables = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow"))
        while True:
            try:
                table = next(tables)
            except StopIteration:
                return
            except Exception as error:  # the seam: Ray's errors have many roots
                reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
                raise ClusterError(
                    self._cluster.address,
                    f"it cannot go on ({type(error).__name__}: {reason}). What was counted is in the index; "
                    "the same command goes on from there",
                ) from error
            yield table

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        report = self.report
        for row in rows:
            if row["status"] == FAILED:
                raise ClusterError(self._cluster.address, f"its worker {row['worker']} cannot embed: {row['reason']}")
            stats = report.workers.setdefault(row["worker"], WorkerStats())
            stats.images += 1
            stats.seconds += row["seconds"]
            if row["status"] == UNCHANGED:
                report.unchanged += 1
            elif row["status"] != EMBEDDED:
                self._skip(row["name"], row["reason"])
        outcomes = self._index.add_many([self._image(row) for row in rows if row["status"] == EMBEDDED])
        report.added += outcomes.count(AddOutcome.ADDED)
        report.replaced += outcomes.count(AddOutcome.REPLACED)
        report.unchanged += outcomes.count(AddOutcome.UNCHANGED)

    def _image(self, row: dict[str, Any]) -> NewImage:
        return NewImage(
            key=self._prefix + row["name"],
            sha256=row["sha256"],
            size=row["size"],
            width=row["width"],
            height=row["height"],
            metadata=None,
            picture=row["picture"],
            vector=np.frombuffer(row["vector"], np.float16).astype(np.float32),
        )

    def _skip(self, name: str, reason: str) -> None:
        self.report.skipped.append((f"{self._source.place.rstrip('/')}/{name}", reason))

    def _show(self, more: int) -> None:
        self.report.seen += more
        if self._progress is not None and more:
            self._progress(self.report)
