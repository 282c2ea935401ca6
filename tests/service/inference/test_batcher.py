"""The batcher's promises, with a real ONNX model behind a gate that the test opens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from model_store.errors import RunnerError
from model_store.image import views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner, average_views
from service.errors import DrainingError, QueueFullError, RunnerDeadError
from service.inference.batch import Row
from service.inference.batcher import Batcher, BatchLimits
from tests.support.gated_model import Gate, picture
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    loaded = Runner(publish_tiny_model(tmp_path_factory.mktemp("home")), RunnerOptions(device="cpu"))
    yield loaded
    loaded.close()


@pytest.fixture
def gate(runner: Runner) -> Gate:
    return Gate(runner)


@pytest.fixture
def make(gate: Gate) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def batcher(
        max_batch: int = 8, max_delay_s: float = 0.0, queue_size: int = 64, deadline_s: float = 10.0
    ) -> Batcher:
        made.append(Batcher(gate, BatchLimits(max_batch, max_delay_s, queue_size, deadline_s)))
        return made[-1]

    yield batcher
    gate.open.set()
    for each in made:
        each.close()


def hold(batcher: Batcher, gate: Gate) -> Future[Row]:
    """Keep the model busy with one picture until the gate opens."""
    gate.open.clear()
    future = batcher.admit(1).submit(picture(255))
    assert gate.entered.acquire(timeout=10)
    return future


def test_answers_equal_those_of_a_picture_alone(make: Callable[..., Batcher], gate: Gate, runner: Runner) -> None:
    batcher = make()
    busy = hold(batcher, gate)
    with batcher.admit(6) as ticket:
        futures = [ticket.submit(picture(value), 1 + 9 * (value % 2)) for value in range(6)]
        gate.open.set()
        busy.result(10)
        for value, future in enumerate(futures):
            count = 1 + 9 * (value % 2)
            alone = runner.run(views(picture(value), count))
            row = future.result(10)
            np.testing.assert_allclose(row.probabilities, average_views(alone.probabilities, count)[0], atol=1e-6)
            np.testing.assert_allclose(row.fc7, average_views(alone.fc7, count)[0], atol=1e-5)


def test_an_idle_model_starts_a_lone_picture_at_once(make: Callable[..., Batcher], gate: Gate) -> None:
    with make(max_delay_s=60.0).admit(1) as ticket:
        ticket.submit(picture(1)).result(10)
    assert gate.sizes == [1]


@pytest.mark.parametrize(("count", "sizes"), [(15, [1, 8, 7]), (10, [1, 6, 4])])
def test_what_gathers_while_the_model_is_busy_runs_together_up_to_the_limit_in_equal_runs(
    count: int, sizes: list[int], make: Callable[..., Batcher], gate: Gate
) -> None:
    batcher = make(max_batch=8)
    hold(batcher, gate)
    with batcher.admit(count) as ticket:
        futures = [ticket.submit(picture(value)) for value in range(count)]
        gate.open.set()
        for future in futures:
            future.result(10)
    assert gate.sizes == sizes


def test_a_busy_model_waits_for_a_full_run_at_most_the_delay(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_batch=3, max_delay_s=60.0)
    hold(batcher, gate)
    with batcher.admit(5) as ticket:
        futures = [ticket.submit(picture(1))]
        gate.open.set()
        assert not gate.entered.acquire(timeout=0.1)
        futures += [ticket.submit(picture(2)), ticket.submit(picture(3))]
        for future in futures:
            future.result(10)
    assert gate.sizes == [1, 3]


def test_requests_take_turns(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_batch=4)
    hold(batcher, gate)
    with batcher.admit(8) as many, batcher.admit(1) as single:
        futures = [many.submit(picture(value)) for value in range(8)]
        futures.append(single.submit(picture(100)))
        gate.open.set()
        for future in futures:
            future.result(10)
    assert gate.marks[1] == [0, 100, 1, 2]


def test_admission_is_all_or_nothing(make: Callable[..., Batcher]) -> None:
    batcher = make(queue_size=4)
    with batcher.admit(3):
        with pytest.raises(QueueFullError) as refused:
            batcher.admit(2)
        assert refused.value.retry_after >= 1
        assert refused.value.limit == 4
        with batcher.admit(1):
            assert batcher.admitted == 4
    assert batcher.admitted == 0


def test_admission_is_atomic_among_threads(make: Callable[..., Batcher]) -> None:
    batcher = make(queue_size=10)
    start = threading.Barrier(16)
    admitted: list[int] = []

    def take() -> None:
        start.wait()
        for _ in range(200):
            try:
                batcher.admit(1)
            except QueueFullError:
                return
            admitted.append(1)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == batcher.admitted == 10


def test_what_nobody_waits_for_is_not_run(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make()
    hold(batcher, gate)
    with batcher.admit(2) as kept:
        cancelled, wanted = kept.submit(picture(1)), kept.submit(picture(2))
        with batcher.admit(2) as left:
            abandoned = [left.submit(picture(3)), left.submit(picture(4))]
        assert cancelled.cancel()
        gate.open.set()
        wanted.result(10)
    assert gate.marks[1] == [2]
    for future in abandoned:
        with pytest.raises(CancelledError):
            future.result(10)


def test_an_image_that_comes_after_its_request_left_is_not_run(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make()
    with batcher.admit(1) as left:
        pass
    assert left.submit(picture(1)).cancelled()
    gate.open.set()
    with batcher.admit(1) as ticket:
        ticket.submit(picture(2)).result(10)
    assert gate.marks == [[2]]


def test_a_failed_run_is_repeated_one_by_one(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make()
    hold(batcher, gate)
    gate.fails = lambda pixels: bool((pixels[:, 0, 0, 0] == 7).any())
    with batcher.admit(3) as ticket:
        futures = [ticket.submit(picture(value)) for value in (5, 7, 9)]
        gate.open.set()
        assert futures[0].result(10).probabilities.shape == (6,)
        with pytest.raises(RunnerError, match="injected"):
            futures[1].result(10)
        assert futures[2].result(10).fc7.shape == (4096,)
    assert batcher.death is None


def test_one_bad_picture_alone_does_not_kill_the_model(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make()
    gate.fails = lambda pixels: bool((pixels[:, 0, 0, 0] == 7).any())
    with batcher.admit(2) as ticket:
        with pytest.raises(RunnerError):
            ticket.submit(picture(7)).result(10)
        ticket.submit(picture(8)).result(10)


def test_a_dead_model_fails_all_that_wait_at_once(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_batch=1)
    busy = hold(batcher, gate)
    gate.fails = lambda _: True
    with batcher.admit(3) as ticket:
        futures = [busy, *(ticket.submit(picture(value)) for value in range(3))]
        gate.open.set()
        for future in futures:
            with pytest.raises(RunnerDeadError, match="injected"):
                future.result(10)
        with pytest.raises(RunnerDeadError):
            ticket.submit(picture(1))
    with pytest.raises(RunnerDeadError):
        batcher.admit(1)
    batcher.close()


def test_close_answers_what_is_queued_and_admits_nothing_more(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_batch=2, max_delay_s=60.0)
    hold(batcher, gate)
    ticket = batcher.admit(3)
    futures = [ticket.submit(picture(value)) for value in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            batcher.admit(1)
        except DrainingError:
            break
    gate.open.set()
    closing.join(10)
    assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 3


def test_retry_after_follows_the_measured_rate(make: Callable[..., Batcher]) -> None:
    batcher = make(queue_size=4000)
    with batcher.admit(1) as ticket:
        ticket.submit(picture(1)).result(10)
    batcher._pace = 0.1
    with batcher.admit(600), pytest.raises(QueueFullError) as refused:
        batcher.admit(4000)
    assert refused.value.retry_after == 30


def test_no_more_is_admitted_than_the_measured_rate_answers_within_the_deadline(
    make: Callable[..., Batcher], gate: Gate
) -> None:
    batcher = make(max_batch=1, deadline_s=2.0)
    with batcher.admit(1) as ticket:
        gate.open.clear()
        slow = ticket.submit(picture(1))
        time.sleep(0.4)
        gate.open.set()
        slow.result(10)
    # 1 image in 0.4 s and a little: of 2 s, 0.8 x 2 / 0.4 = 4 images, or 3.
    assert batcher.full() is None
    with batcher.admit(1), batcher.admit(2):
        with pytest.raises(QueueFullError) as refused:
            batcher.admit(2)
        assert refused.value.limit in (3, 4)
    with batcher.admit(30):  # alone, a request is always tried
        assert batcher.full() is not None
    assert batcher.full() is None
