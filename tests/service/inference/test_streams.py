"""Runs side by side, and the cores that they share with decoding: real ONNX models behind gates that the test opens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from model_store.image import views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from service.errors import RunnerDeadError
from service.inference.batch import Row
from service.inference.batcher import Batcher, BatchLimits, Ticket
from tests.support.gated_model import Gate, picture
from tests.support.server import wait_until
from tests.support.tiny_model import publish_tiny_model

BLOCKED_S = 0.1


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    artifact = publish_tiny_model(tmp_path_factory.mktemp("home"))
    loaded = Runner(artifact, RunnerOptions(device="cpu", intra_op_threads=2, streams=2))
    yield loaded
    loaded.close()


@pytest.fixture
def wide(runner: Runner) -> Gate:
    return Gate(runner)


@pytest.fixture
def beside(runner: Runner) -> Gate:
    return Gate(runner)


@pytest.fixture
def deaths() -> list[RunnerDeadError]:
    return []


@pytest.fixture
def make(wide: Gate, beside: Gate, deaths: list[RunnerDeadError]) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def batcher(max_delay_s: float = 0.0, streams: int = 2) -> Batcher:
        limits = BatchLimits(max_batch=8, max_delay_s=max_delay_s, queue_size=64)
        made.append(Batcher(wide, limits, run_beside=beside, streams=streams, cores=2, on_death=deaths.append))
        return made[-1]

    yield batcher
    wide.open.set()
    beside.open.set()
    for each in made:
        each.close()


class Decoder(threading.Thread):
    """Decodes an image of a ticket: has a core once `began` is set, until `end` is."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(daemon=True)
        self.ticket = ticket
        self.began, self.end = threading.Event(), threading.Event()
        self.left: CancelledError | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.ticket.decoding():
                self.began.set()
                assert self.end.wait(10)
        except CancelledError as error:
            self.left = error


def fill(batcher: Batcher, beside: Gate, runs: int) -> list[Future[Row]]:
    """Have so many runs under way, of one image each, until the gate opens."""
    beside.open.clear()
    ticket = batcher.admit(runs + 1)  # one more is on its way: no run is alone
    futures = []
    for value in range(runs):
        futures.append(ticket.submit(picture(value)))
        assert beside.entered.acquire(timeout=10)
    return futures


def test_a_lone_image_has_all_cores(make: Callable[..., Batcher], wide: Gate, beside: Gate) -> None:
    with make(max_delay_s=60.0).admit(1) as ticket:
        ticket.submit(picture(1)).result(10)
    assert (wide.sizes, beside.sizes) == ([1], [])


def test_two_runs_go_side_by_side_and_a_third_waits(make: Callable[..., Batcher], beside: Gate, runner: Runner) -> None:
    batcher = make()
    futures = fill(batcher, beside, 2)
    with batcher.admit(1) as third:
        futures.append(third.submit(picture(2)))
        assert not beside.entered.acquire(timeout=BLOCKED_S)
        beside.open.set()
        for value, future in enumerate(futures):
            np.testing.assert_allclose(future.result(10).fc7, runner.run(views(picture(value), 1)).fc7[0], atol=1e-5)


def test_free_streams_share_what_waits(make: Callable[..., Batcher], wide: Gate, beside: Gate) -> None:
    batcher = make()
    wide.open.clear()
    with batcher.admit(1) as lone:
        alone = lone.submit(picture(100))
        assert wide.entered.acquire(timeout=10)
        with batcher.admit(7) as many:
            futures = [many.submit(picture(value)) for value in range(7)]
            assert not beside.entered.acquire(timeout=BLOCKED_S)  # the lone image has all cores
            wide.open.set()
            for future in (alone, *futures):
                future.result(10)
    assert sorted(beside.sizes) == [3, 4]


def test_a_run_waits_for_what_is_being_decoded(make: Callable[..., Batcher], beside: Gate) -> None:
    batcher = make(max_delay_s=60.0)
    beside.open.clear()
    with batcher.admit(3) as ticket:
        futures = [ticket.submit(picture(1))]
        assert not beside.entered.acquire(timeout=BLOCKED_S)
        futures.append(ticket.submit(picture(2)))
        assert beside.entered.acquire(timeout=10)
        futures.append(ticket.submit(picture(3)))
        assert beside.entered.acquire(timeout=10)
        beside.open.set()
        for future in futures:
            future.result(10)
    assert sorted(beside.sizes) == [1, 2]


def test_a_run_that_has_its_share_does_not_wait_for_what_another_will_take(
    make: Callable[..., Batcher], beside: Gate
) -> None:
    batcher = make(max_delay_s=60.0)
    with batcher.admit(2) as ticket:
        ticket.submit(picture(1)).result(10)
        assert beside.sizes == [1]


def test_a_run_waits_no_longer_for_a_request_that_left(make: Callable[..., Batcher]) -> None:
    batcher = make(max_delay_s=60.0)
    with batcher.admit(1) as ticket:
        with batcher.admit(2):
            future = ticket.submit(picture(1))
            time.sleep(BLOCKED_S)
            assert not future.done()
        future.result(10)


def test_a_run_waits_for_decoding_at_most_the_delay(make: Callable[..., Batcher]) -> None:
    with make(max_delay_s=0.2).admit(3) as ticket:
        started = time.monotonic()
        ticket.submit(picture(1)).result(10)
    assert time.monotonic() - started >= 0.2


def test_images_are_decoded_on_cores_that_no_run_has(make: Callable[..., Batcher], beside: Gate) -> None:
    batcher = make()
    futures = fill(batcher, beside, 1)
    with batcher.admit(2) as ticket:
        first = Decoder(ticket)
        assert first.began.wait(10)
        second = Decoder(ticket)
        assert not second.began.wait(BLOCKED_S)
        beside.open.set()
        futures[0].result(10)
        assert second.began.wait(10)
        first.end.set()
        second.end.set()


def test_with_one_stream_decoding_waits_for_nothing(make: Callable[..., Batcher], wide: Gate) -> None:
    batcher = make(streams=1)
    wide.open.clear()
    with batcher.admit(3) as ticket:
        ticket.submit(picture(1))
        assert wide.entered.acquire(timeout=10)
        decoders = [Decoder(ticket) for _ in range(3)]
        for decoder in decoders:
            assert decoder.began.wait(10)
            decoder.end.set()


def test_images_are_decoded_in_the_order_of_their_coming(make: Callable[..., Batcher], beside: Gate) -> None:
    batcher = make()
    fill(batcher, beside, 2)
    with batcher.admit(1) as a, batcher.admit(1) as b, batcher.admit(1) as c:
        decoders = []
        for number, ticket in enumerate((b, c, a), 1):
            decoders.append(Decoder(ticket))
            wait_until(lambda number=number: len(batcher._decoders) == number)  # type: ignore[misc]
        held = Decoder(batcher.admit(1))
        wait_until(lambda: len(batcher._decoders) == 4)
        beside.open.set()
        for decoder in (decoders[0], decoders[1]):
            assert decoder.began.wait(10)
        assert not decoders[2].began.wait(BLOCKED_S)
        decoders[0].end.set()
        assert decoders[2].began.wait(10)
        assert not held.began.is_set()
        for decoder in (*decoders, held):
            decoder.end.set()


def test_while_every_core_decodes_a_run_waits_as_long_as_one_takes(make: Callable[..., Batcher], beside: Gate) -> None:
    batcher = make()
    [future] = fill(batcher, beside, 1)
    time.sleep(4 * BLOCKED_S)
    beside.open.set()
    future.result(10)
    with batcher.admit(3) as ticket:
        future = ticket.submit(picture(1))
        assert not beside.entered.acquire(timeout=2 * BLOCKED_S)
        future.result(10)


@pytest.mark.parametrize("_turn", range(8))  # who is woken first is chance
def test_a_run_that_can_begin_goes_before_decoding(make: Callable[..., Batcher], beside: Gate, _turn: int) -> None:
    batcher = make()
    fill(batcher, beside, 1)
    with batcher.admit(1) as ticket, batcher.admit(1) as ready, batcher.admit(1) as later:
        decoding = Decoder(ticket)
        assert decoding.began.wait(10)
        waiting = Decoder(later)
        wait_until(lambda: len(batcher._decoders) == 1)
        future = ready.submit(picture(5))
        decoding.end.set()
        assert beside.entered.acquire(timeout=10)
        assert not waiting.began.wait(BLOCKED_S / 4)
        beside.open.set()
        future.result(10)
        assert waiting.began.wait(10)
        waiting.end.set()


def test_who_left_while_waiting_for_a_core_decodes_nothing(make: Callable[..., Batcher], beside: Gate) -> None:
    batcher = make()
    fill(batcher, beside, 2)
    with batcher.admit(1) as ticket:
        decoder = Decoder(ticket)
        assert not decoder.began.wait(BLOCKED_S)
    decoder.join(10)
    assert decoder.left is not None
    assert not decoder.began.is_set()


def test_two_streams_that_fail_are_one_death_and_let_all_go(
    make: Callable[..., Batcher], beside: Gate, deaths: list[RunnerDeadError]
) -> None:
    batcher = make()
    futures = fill(batcher, beside, 2)
    with batcher.admit(2) as ticket:
        futures.append(ticket.submit(picture(3)))
        decoder = Decoder(ticket)
        assert not decoder.began.wait(BLOCKED_S)
        beside.fails = lambda _: True
        beside.open.set()
        for future in futures:
            with pytest.raises(RunnerDeadError, match="injected"):
                future.result(10)
        assert decoder.began.wait(10)
        decoder.end.set()
    batcher.close()
    assert [str(death) for death in deaths] == [str(batcher.death)]


def test_close_answers_what_each_stream_has(make: Callable[..., Batcher], beside: Gate) -> None:
    batcher = make(max_delay_s=60.0)
    beside.open.clear()
    with batcher.admit(12) as ticket:  # one is still being decoded
        futures = [ticket.submit(picture(value)) for value in range(11)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        beside.open.set()
        closing.join(10)
        assert not closing.is_alive()
        assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 11
    assert sum(beside.sizes) == 11


def test_close_ends_a_stream_that_waits_while_another_takes_the_last_images(
    make: Callable[..., Batcher], wide: Gate
) -> None:
    batcher = make(max_delay_s=60.0)
    wide.open.clear()
    with batcher.admit(1) as lone:
        futures = [lone.submit(picture(0))]  # has all cores, so that the other stream waits for one
        assert wide.entered.acquire(timeout=10)
        with batcher.admit(1) as last:
            futures.append(last.submit(picture(1)))
            closing = threading.Thread(target=batcher.close)
            closing.start()
            time.sleep(BLOCKED_S)
            wide.open.set()
            closing.join(10)
            assert not closing.is_alive()
            assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 2
