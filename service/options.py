"""From the settings to the options of a runner: the one place that joins the two.

Does not: read the environment.
"""

from __future__ import annotations

from model_store.runner import RunnerOptions
from service.settings import Settings


def runner_options(settings: Settings) -> RunnerOptions:
    """Return how these settings want a version to be run. Raises DeviceUnavailableError for a contradiction."""
    return RunnerOptions(
        device=settings.device,
        intra_op_threads=settings.threads,
        cuda_memory_limit=None if settings.cuda_memory_mb is None else settings.cuda_memory_mb * 1_000_000,
        cuda_graphs=settings.cuda_graphs,
        precision=settings.precision,
        tensorrt=settings.home / "tensorrt" if settings.tensorrt else None,
    )
