"""From the settings to the options of a runner, and to the index: the one place that joins them.

Does not: read the environment.
"""

from __future__ import annotations

from dataclasses import replace

from index.errors import IndexPlaceError
from index.factory import open_index, read_stats
from index.interface import ImageIndex
from index.records import IndexOptions, IndexStats, MilvusAddress
from model_store.artifact import Artifact
from model_store.runtime.options import RunnerOptions
from service.inference.memory import needed_to_load
from service.settings import Settings


def runner_options(settings: Settings, *, batches: bool = False) -> RunnerOptions:
    """Return how these settings want a version to be run; `batches`: for many images, not for one at a time.

    Raises DeviceUnavailableError for a contradiction.
    """
    return RunnerOptions(
        device=settings.device,
        intra_op_threads=settings.threads,
        batches=batches,
        cuda_memory_limit=None if settings.cuda_memory_mb is None else settings.cuda_memory_mb * 1_000_000,
        cuda_graphs=settings.cuda_graphs,
        precision=settings.precision,
        tensorrt=settings.home / "tensorrt" if settings.tensorrt else None,
    )


def serving_options(settings: Settings, artifact: Artifact, free: int | None) -> RunnerOptions:
    """As `runner_options`, for a service: with runs side by side, where their second copy of the weights has room.

    free: bytes that the process may still take; None for not known. Raises DeviceUnavailableError for a contradiction.
    """
    options = runner_options(settings)
    if settings.streams is not None:
        return replace(options, streams=settings.streams)
    if options.threads == 1 or options.device.startswith("cuda"):
        return options
    room = free is None or free >= needed_to_load(artifact, streams=2)
    return replace(options, streams=2 if room else 1)


def open_index_of(settings: Settings, options: IndexOptions) -> ImageIndex:
    """Open the index that these settings name. Raises as `open_index` does.

    The settings replace the options `keep_pictures` and `keep_previous`, and `fast_from` if it is None.
    """
    options = replace(
        options,
        keep_pictures=settings.keep_pictures,
        keep_previous=settings.previous_vectors == "keep",
        fast_from=(settings.fast_from or None) if options.fast_from is None else options.fast_from,
    )
    return open_index(settings.home, milvus_address(settings), options)


def milvus_address(settings: Settings) -> MilvusAddress | None:
    """Return where the index is stored on Milvus, or None if it is in FC7_HOME."""
    if settings.index_uri is None:
        return None
    token = None if settings.index_token is None else settings.index_token.get_secret_value()
    return MilvusAddress(settings.index_uri, token, settings.index_name, settings.index_timeout_s)


def read_stats_of(settings: Settings) -> IndexStats:
    """Return the counts of the index that these settings name. Raises as `read_stats` does."""
    return read_stats(settings.home, milvus_address(settings))


def check_local(settings: Settings, what: str, mend: str) -> None:
    """Raise IndexPlaceError when the index is on Milvus: `what` it cannot do, and what to do instead."""
    if settings.index_uri is not None:
        raise IndexPlaceError(settings.index_uri, what, mend)
