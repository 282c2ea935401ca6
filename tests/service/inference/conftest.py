"""Batchers with real, pausable models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from service.errors import RunnerDeadError
from service.inference.admission import BatchLimits
from service.inference.batcher import Batcher
from tests.support.pausable_model import PausableModel
from tests.support.tiny_model import publish_tiny_model


class MakeBatcher(Protocol):
    """Creates a batcher that is closed after the test."""

    def __call__(
        self, *, max_batch: int = 8, max_delay_s: float = 0.0, queue_size: int = 64, deadline_s: float = 10.0
    ) -> Batcher: ...


class MakeSharingBatcher(Protocol):
    """Creates a batcher whose runs share two cores with decoding, and that is closed after the test."""

    def __call__(
        self, *, max_delay_s: float = 0.0, max_batch: int = 8, cores: int | None = 2, streams: int = 1
    ) -> Batcher: ...


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    artifact = publish_tiny_model(tmp_path_factory.mktemp("home"))
    loaded = Runner(artifact, RunnerOptions(device="cpu", intra_op_threads=2))
    yield loaded
    loaded.close()


@pytest.fixture
def model(runner: Runner) -> PausableModel:
    return PausableModel(runner)


@pytest.fixture
def deaths() -> list[RunnerDeadError]:
    return []


@pytest.fixture
def open_batchers(model: PausableModel) -> Iterator[list[Batcher]]:
    batchers: list[Batcher] = []
    yield batchers
    model.resume()
    for batcher in batchers:
        batcher.close()


@pytest.fixture
def make_batcher(model: PausableModel, open_batchers: list[Batcher]) -> MakeBatcher:
    def make(
        *, max_batch: int = 8, max_delay_s: float = 0.0, queue_size: int = 64, deadline_s: float = 10.0
    ) -> Batcher:
        open_batchers.append(Batcher(model, BatchLimits(max_batch, max_delay_s, queue_size, deadline_s)))
        return open_batchers[-1]

    return make


@pytest.fixture
def make_sharing_batcher(
    model: PausableModel, deaths: list[RunnerDeadError], open_batchers: list[Batcher]
) -> MakeSharingBatcher:
    def make(*, max_delay_s: float = 0.0, max_batch: int = 8, cores: int | None = 2, streams: int = 1) -> Batcher:
        limits = BatchLimits(max_batch=max_batch, max_delay_s=max_delay_s, queue_size=64)
        open_batchers.append(Batcher(model, limits, cores=cores, streams=streams, on_death=deaths.append))
        return open_batchers[-1]

    return make
