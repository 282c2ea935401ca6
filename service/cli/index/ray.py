"""`fc7 index build --ray`: the same command on a Ray cluster, and its report as JSON values.

Ray is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from index.bulk.metadata import ImageMetadata
from index.bulk.ray.build import ClusterBuild, ClusterReport
from index.bulk.ray.cluster import join
from index.bulk.ray.worker import WorkerPlan
from index.bulk.report import BuildReport, count_kinds
from index.bulk.sources import open_source
from index.records import IndexOptions, IndexStats
from model_store.runtime.runner import engine_of
from service.cli.options import find_version
from service.factory import decode_limits, open_index_of, runner_options, store_of
from service.settings import Settings

_BLOCK_BYTES: Final = 400_000_000  # object store memory for blocks of images


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build on this machine or on a cluster. model: None for the active version."""

    model: str | None
    batch_size: int
    key_prefix: str
    rebuild: bool
    metadata: ImageMetadata


def build_on_ray(
    settings: Settings,
    source: str,
    options: BuildOptions,
    progress: Callable[[BuildReport], None],
    *,
    address: str,
    actors: int | None,
) -> tuple[ClusterReport, IndexStats]:
    """Add every image of `source` with the workers of a cluster; return the report and the index's statistics.

    actors: None starts as many as fit. Raises the errors of `join`, `ClusterBuild.run`, `open_source` and
    `open_index_of`.
    """
    store = store_of(settings)
    artifact = find_version(store, options.model).at(settings.precision)
    runner = runner_options(settings)
    if artifact.depends_on_engine:  # a worker with other packages must not choose another one
        runner = replace(runner, engine=engine_of(runner))
    files = open_source(source)
    files.check()
    object_store_bytes = sum(entry.size for entry in artifact.manifest.files.values()) + _BLOCK_BYTES
    with (
        open_index_of(settings, IndexOptions(artifact.fingerprint, artifact.embedder, switch=options.rebuild)) as index,
        join(address, object_store_bytes=object_store_bytes) as cluster,
    ):
        placement = cluster.place_actors(actors, settings.threads, settings.device)
        cluster.check(files.location)
        plan = WorkerPlan(
            location=files.location,
            options=runner,
            batch_size=options.batch_size,
            threads=placement.threads,
            limits=decode_limits(settings),
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
            metadata=options.metadata,
            progress=progress,
        )
        return build.run(), index.stats()


def report_values(report: BuildReport, seconds: float) -> dict[str, Any]:
    """Return a build's report as JSON values, with the rates of its workers if it ran on a cluster."""
    values = {field.name: getattr(report, field.name) for field in fields(BuildReport)} | {
        "skipped": [{"image": item.path, "reason": item.reason, "kind": item.kind} for item in report.skipped],
        "ignored": [item.path for item in report.ignored],
        "skipped_by_reason": count_kinds(report.skipped),
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
    return values
