"""`fc7 index build --ray`: the same command on a Ray cluster, and its report as JSON.

Does not: import Ray before it is asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from index.bulk.ray.build import ClusterBuild, ClusterReport
from index.bulk.ray.cluster import join
from index.bulk.ray.worker import WorkerPlan
from index.bulk.report import BuildReport
from index.bulk.sources import open_source
from index.records import IndexOptions, IndexStats
from model_store.store import ModelStore
from service.factory import open_index_of, runner_options
from service.settings import Settings

_ROOM_FOR_BLOCKS = 400_000_000


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the command line says of a build, wherever it is done; `model` None takes the active version."""

    model: str | None
    batch_size: int
    key_prefix: str
    rebuild: bool


def build_on_ray(
    settings: Settings,
    source: str,
    options: BuildOptions,
    progress: Callable[[BuildReport], None],
    *,
    address: str,
    actors: int | None,
) -> tuple[ClusterReport, IndexStats]:
    """Add every image of `source` by the workers of a cluster; return what became of them, and of the index.

    actors: None takes as many as there is room for. Raises what `join`, `ClusterBuild.run`, opening a source and
    opening an index raise.
    """
    store = ModelStore(settings.home, precision=settings.precision)
    artifact = (store.active_artifact() if options.model is None else store.resolve(options.model)).at(
        settings.precision
    )
    files = open_source(source)
    files.check()
    room = sum(entry.size for entry in artifact.manifest.files.values()) + _ROOM_FOR_BLOCKS
    with (
        open_index_of(settings, IndexOptions(artifact.fingerprint, artifact.embedder, switch=options.rebuild)) as index,
        join(address, object_store_bytes=room) as cluster,
    ):
        placement = cluster.place_actors(actors, settings.threads, settings.device)
        cluster.check(files.location)
        plan = WorkerPlan(
            location=files.location,
            options=runner_options(settings, batches=True),
            batch_size=options.batch_size,
            threads=placement.threads,
            max_pixels=settings.max_pixels,
            keep_pictures=settings.keep_pictures,
        )
        build = ClusterBuild(
            cluster,
            files,
            index,
            artifact,
            plan=plan,
            placement=placement,
            key_prefix=options.key_prefix,
            progress=progress,
        )
        report = build.run()
        return report, index.stats()


def print_json(report: BuildReport, seconds: float) -> None:
    """Print a build's report, with the rates of its workers where it had some."""
    values = {
        "total": report.total,
        "seen": report.seen,
        "added": report.added,
        "replaced": report.replaced,
        "unchanged": report.unchanged,
        "skipped": [{"image": str(image), "reason": reason} for image, reason in report.skipped],
        "interrupted": report.interrupted,
        "seconds": round(seconds, 3),
        "images_per_second": round(report.seen / seconds, 2),
    }
    if isinstance(report, ClusterReport):
        values["workers"] = {
            name: {
                "images": stats.images,
                "seconds": round(stats.seconds, 3),
                "images_per_second": round(stats.images / stats.seconds, 2) if stats.seconds else None,
            }
            for name, stats in sorted(report.workers.items())
        }
    json.dump(values, sys.stdout)
    sys.stdout.write("\n")
