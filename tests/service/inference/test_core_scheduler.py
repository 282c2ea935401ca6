"""Parallel runs, and the cores that they share with decoding, with real ONNX models that the test can pause."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from model_store.image import views
from model_store.runtime.runner import Runner
from service.errors import RunnerDeadError
from service.inference.admission import Prediction
from service.inference.batcher import Batcher, Ticket
from tests.service.inference.conftest import MakeParallelBatcher
from tests.support.pausable_model import PausableModel, image
from tests.support.server import wait_until

BLOCKED_S = 0.1


class Decoder(threading.Thread):
    """Decodes an image of a ticket: holds a core from `started` until `finish` is set."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(daemon=True)
        self.ticket = ticket
        self.started, self.finish = threading.Event(), threading.Event()
        self.cancelled: CancelledError | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.ticket.decoding():
                self.started.set()
                assert self.finish.wait(10)
        except CancelledError as error:
            self.cancelled = error


def start_runs(batcher: Batcher, parallel_model: PausableModel, runs: int) -> list[Future[Prediction]]:
    """Start `runs` runs of one image each, which wait until the model is resumed."""
    parallel_model.pause()
    ticket = batcher.admit(runs + 1)  # one more image is pending, so no run is alone
    futures = []
    for value in range(runs):
        futures.append(ticket.submit(image(value)))
        assert parallel_model.started.acquire(timeout=10)
    return futures


def test_a_single_image_uses_all_cores(
    make_parallel_batcher: MakeParallelBatcher, model: PausableModel, parallel_model: PausableModel
) -> None:
    with make_parallel_batcher(max_delay_s=60.0).admit(1) as ticket:
        ticket.submit(image(1)).result(10)
    assert (model.sizes, parallel_model.sizes) == ([1], [])


def test_two_runs_are_parallel_and_a_third_waits(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel, runner: Runner
) -> None:
    batcher = make_parallel_batcher()
    futures = start_runs(batcher, parallel_model, 2)
    with batcher.admit(1) as third:
        futures.append(third.submit(image(2)))
        assert not parallel_model.started.acquire(timeout=BLOCKED_S)
        parallel_model.resume()
        for value, future in enumerate(futures):
            np.testing.assert_allclose(future.result(10).fc7, runner.run(views(image(value), 1)).fc7[0], atol=1e-5)


def test_free_streams_share_the_queued_images(
    make_parallel_batcher: MakeParallelBatcher, model: PausableModel, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher()
    model.pause()
    with batcher.admit(1) as single:
        alone = single.submit(image(100))
        assert model.started.acquire(timeout=10)
        with batcher.admit(7) as many:
            futures = [many.submit(image(value)) for value in range(7)]
            assert not parallel_model.started.acquire(timeout=BLOCKED_S)  # the single image uses all cores
            model.resume()
            for future in (alone, *futures):
                future.result(10)
    assert sorted(parallel_model.sizes) == [3, 4]


def test_a_batch_waits_for_images_that_are_being_decoded(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher(max_delay_s=60.0)
    parallel_model.pause()
    with batcher.admit(3) as ticket:
        futures = [ticket.submit(image(1))]
        assert not parallel_model.started.acquire(timeout=BLOCKED_S)
        futures.append(ticket.submit(image(2)))
        assert parallel_model.started.acquire(timeout=10)
        futures.append(ticket.submit(image(3)))
        assert parallel_model.started.acquire(timeout=10)
        parallel_model.resume()
        for future in futures:
            future.result(10)
    assert sorted(parallel_model.sizes) == [1, 2]


def test_a_batch_with_its_fair_share_does_not_wait(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher(max_delay_s=60.0)
    with batcher.admit(2) as ticket:
        ticket.submit(image(1)).result(10)
        assert parallel_model.sizes == [1]


def test_a_batch_stops_waiting_when_the_other_request_leaves(make_parallel_batcher: MakeParallelBatcher) -> None:
    batcher = make_parallel_batcher(max_delay_s=60.0)
    with batcher.admit(1) as ticket:
        with batcher.admit(2):
            future = ticket.submit(image(1))
            time.sleep(BLOCKED_S)
            assert not future.done()
        future.result(10)


def test_a_batch_waits_for_decoding_at_most_the_delay(make_parallel_batcher: MakeParallelBatcher) -> None:
    with make_parallel_batcher(max_delay_s=0.2).admit(3) as ticket:
        started = time.monotonic()
        ticket.submit(image(1)).result(10)
    assert time.monotonic() - started >= 0.2


def test_images_are_decoded_on_cores_that_no_run_uses(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher()
    futures = start_runs(batcher, parallel_model, 1)
    with batcher.admit(2) as ticket:
        first = Decoder(ticket)
        assert first.started.wait(10)
        second = Decoder(ticket)
        assert not second.started.wait(BLOCKED_S)
        parallel_model.resume()
        futures[0].result(10)
        assert second.started.wait(10)
        first.finish.set()
        second.finish.set()


def test_with_one_stream_decoding_never_waits(make_parallel_batcher: MakeParallelBatcher, model: PausableModel) -> None:
    batcher = make_parallel_batcher(streams=1)
    model.pause()
    with batcher.admit(3) as ticket:
        ticket.submit(image(1))
        assert model.started.acquire(timeout=10)
        decoders = [Decoder(ticket) for _ in range(3)]
        for decoder in decoders:
            assert decoder.started.wait(10)
            decoder.finish.set()


def test_images_are_decoded_in_order_of_arrival(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher()
    start_runs(batcher, parallel_model, 2)
    with batcher.admit(1) as a, batcher.admit(1) as b, batcher.admit(1) as c:
        decoders = []
        for number, ticket in enumerate((b, c, a), 1):
            decoders.append(Decoder(ticket))
            wait_until(lambda number=number: len(batcher._scheduler._waiting_to_decode) == number)  # type: ignore[misc]
        last = Decoder(batcher.admit(1))
        wait_until(lambda: len(batcher._scheduler._waiting_to_decode) == 4)
        parallel_model.resume()
        for decoder in (decoders[0], decoders[1]):
            assert decoder.started.wait(10)
        assert not decoders[2].started.wait(BLOCKED_S)
        decoders[0].finish.set()
        assert decoders[2].started.wait(10)
        assert not last.started.is_set()
        for decoder in (*decoders, last):
            decoder.finish.set()


def test_while_every_core_decodes_a_batch_waits_as_long_as_a_run_takes(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher()
    [future] = start_runs(batcher, parallel_model, 1)
    time.sleep(4 * BLOCKED_S)
    parallel_model.resume()
    future.result(10)
    with batcher.admit(3) as ticket:
        future = ticket.submit(image(1))
        assert not parallel_model.started.acquire(timeout=2 * BLOCKED_S)
        future.result(10)


@pytest.mark.parametrize("_repetition", range(8))  # which thread wakes up first varies
def test_a_batch_that_is_ready_takes_precedence_over_decoding(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel, _repetition: int
) -> None:
    batcher = make_parallel_batcher()
    start_runs(batcher, parallel_model, 1)
    with batcher.admit(1) as ticket, batcher.admit(1) as ready, batcher.admit(1) as later:
        decoding = Decoder(ticket)
        assert decoding.started.wait(10)
        waiting = Decoder(later)
        wait_until(lambda: len(batcher._scheduler._waiting_to_decode) == 1)
        future = ready.submit(image(5))
        decoding.finish.set()
        assert parallel_model.started.acquire(timeout=10)
        assert not waiting.started.wait(BLOCKED_S / 4)
        parallel_model.resume()
        future.result(10)
        assert waiting.started.wait(10)
        waiting.finish.set()


def test_a_request_released_while_it_waits_for_a_core_decodes_nothing(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher()
    start_runs(batcher, parallel_model, 2)
    with batcher.admit(1) as ticket:
        decoder = Decoder(ticket)
        assert not decoder.started.wait(BLOCKED_S)
    decoder.join(10)
    assert decoder.cancelled is not None
    assert not decoder.started.is_set()


def test_two_failing_streams_report_one_death_and_release_all_threads(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel, deaths: list[RunnerDeadError]
) -> None:
    batcher = make_parallel_batcher()
    futures = start_runs(batcher, parallel_model, 2)
    with batcher.admit(2) as ticket:
        futures.append(ticket.submit(image(3)))
        decoder = Decoder(ticket)
        assert not decoder.started.wait(BLOCKED_S)
        parallel_model.fails = lambda _: True
        parallel_model.resume()
        for future in futures:
            with pytest.raises(RunnerDeadError, match="injected"):
                future.result(10)
        assert decoder.started.wait(10)
        decoder.finish.set()
    batcher.close()
    assert [str(death) for death in deaths] == [str(batcher.death)]


def test_close_answers_the_images_of_every_stream(
    make_parallel_batcher: MakeParallelBatcher, parallel_model: PausableModel
) -> None:
    batcher = make_parallel_batcher(max_delay_s=60.0)
    parallel_model.pause()
    with batcher.admit(12) as ticket:  # one image is still being decoded
        futures = [ticket.submit(image(value)) for value in range(11)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        parallel_model.resume()
        closing.join(10)
        assert not closing.is_alive()
        assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 11
    assert sum(parallel_model.sizes) == 11


def test_close_ends_a_stream_that_waits_while_another_takes_the_last_images(
    make_parallel_batcher: MakeParallelBatcher, model: PausableModel
) -> None:
    batcher = make_parallel_batcher(max_delay_s=60.0)
    model.pause()
    with batcher.admit(1) as single:
        futures = [single.submit(image(0))]  # uses all cores, so the other stream waits for one
        assert model.started.acquire(timeout=10)
        with batcher.admit(1) as last:
            futures.append(last.submit(image(1)))
            closing = threading.Thread(target=batcher.close)
            closing.start()
            time.sleep(BLOCKED_S)
            model.resume()
            closing.join(10)
            assert not closing.is_alive()
            assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 2
