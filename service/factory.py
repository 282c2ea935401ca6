"""Creates runner options and opens the index according to the settings.

Out of scope: reading the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from index.errors import MilvusUnsupportedError
from index.factory import open_index, read_stats
from index.interface import ImageIndex
from index.records import IndexOptions, IndexStats, MilvusAddress
from model_store.decoder.decoder import Decoder, Event
from model_store.decoder.limits import DecodeLimits
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import engine_of
from model_store.store import ModelStore
from service.settings import Settings

_DECODER_NICENESS: Final = 5  # about a third of the share of a thread of the model


def decode_limits(settings: Settings) -> DecodeLimits:
    """Return the limits of decoding one image."""
    return DecodeLimits(settings.max_pixels, settings.max_decode_mb * 1_000_000, settings.decode_s)


def decoder_of(settings: Settings, *, workers: int, on_event: Callable[[Event], None]) -> Decoder:
    """Return a decoder for a service, whose processes give way to the model. workers, on_event: as in `Decoder`."""
    memory = None if settings.decode_memory_mb is None else settings.decode_memory_mb * 1_000_000
    return Decoder(
        decode_limits(settings), workers=workers, memory=memory, niceness=_DECODER_NICENESS, on_event=on_event
    )


def runner_options(settings: Settings) -> RunnerOptions:
    """Return the options of a runner. Raises DeviceUnavailableError if the settings contradict each other."""
    return RunnerOptions(
        device=settings.device,
        engine=settings.engine,
        arithmetic=settings.arithmetic,
        intra_op_threads=settings.threads,
        cuda_memory_limit=None if settings.cuda_memory_mb is None else settings.cuda_memory_mb * 1_000_000,
        cuda_graphs=settings.cuda_graphs,
        precision=settings.precision,
        tensorrt=settings.home / "tensorrt" if settings.tensorrt else None,
    )


def store_of(settings: Settings) -> ModelStore:
    """Return the store of versions, in the precision and for the engine that these settings give.

    Raises DeviceUnavailableError if the settings contradict each other.
    """
    return ModelStore(settings.home, precision=settings.precision, engine=engine_of(runner_options(settings)))


def open_index_of(settings: Settings, options: IndexOptions) -> ImageIndex:
    """Open the index that these settings name. Raises as `open_index` does.

    The settings override the options `keep_pictures` and `keep_previous`, and `fast_from` if it is None.
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


def outdated_note(count: int) -> str:
    """Return what to tell about images that an earlier version of the preparation prepared."""
    return (
        f"{count:,} images were prepared by an earlier version of fc7, so their colors, and the neighbors found for "
        "them, may be wrong. Index the same folder again: fc7 index build DIR"
    )


def read_stats_of(settings: Settings) -> IndexStats:
    """Return the counts of the index. Raises as `read_stats` does."""
    return read_stats(settings.home, milvus_address(settings))


def check_local(settings: Settings, problem: str, fix: str) -> None:
    """Raise MilvusUnsupportedError if the index is on Milvus."""
    if settings.index_uri is not None:
        raise MilvusUnsupportedError(settings.index_uri, problem, fix)
