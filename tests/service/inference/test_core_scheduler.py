"""The cores that runs share with decoding, with real ONNX models that the test can pause."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import pytest

from service.errors import RunnerDeadError
from service.inference.admission import Prediction
from service.inference.batcher import Batcher, Ticket
from tests.service.inference.conftest import MakeSharingBatcher
from tests.support.pausable_model import PausableModel, image
from tests.support.server import wait_until

BLOCKED_S = 0.1


class Decoder(threading.Thread):
    """Decodes an image of a ticket: holds a core from `started` until `finish` is set, then queues it if asked to."""

    def __init__(self, ticket: Ticket, *, queue: bool = False) -> None:
        super().__init__(daemon=True)
        self.queue, self.fails = queue, False
        self.ticket = ticket
        self.started, self.finish = threading.Event(), threading.Event()
        self.prediction: Future[Prediction] | None = None
        self.cancelled: CancelledError | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.ticket.decoding():
                self.started.set()
                assert self.finish.wait(10)
                if self.fails:
                    raise CancelledError
                if self.queue:
                    self.prediction = self.ticket.submit(image(7), wake=False)
        except CancelledError as error:
            self.cancelled = error


def start_run(batcher: Batcher, model: PausableModel) -> Future[Prediction]:
    """Start a run of one image, which waits until the model is resumed."""
    model.pause()
    future = batcher.admit(1).submit(image(0))
    assert model.started.acquire(timeout=10)
    return future


def test_a_batch_with_its_fair_share_does_not_wait(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    with make_sharing_batcher(max_delay_s=60.0, max_batch=3).admit(4) as ticket:  # two batches of two images
        for future in [ticket.submit(image(1)), ticket.submit(image(2))]:
            future.result(10)
        assert model.sizes == [2]


def test_a_batch_stops_waiting_when_the_other_request_leaves(make_sharing_batcher: MakeSharingBatcher) -> None:
    batcher = make_sharing_batcher(max_delay_s=60.0)
    with batcher.admit(1) as ticket:
        with batcher.admit(2):
            future = ticket.submit(image(1))
            time.sleep(BLOCKED_S)
            assert not future.done()
        future.result(10)


def test_a_batch_waits_for_decoding_at_most_the_delay(make_sharing_batcher: MakeSharingBatcher) -> None:
    with make_sharing_batcher(max_delay_s=0.2).admit(3) as ticket:
        started = time.monotonic()
        ticket.submit(image(1)).result(10)
    assert time.monotonic() - started >= 0.2


def test_images_left_over_from_a_run_wait_for_those_that_could_not_be_decoded_during_it(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(max_delay_s=0.3)
    running = start_run(batcher, model)
    with batcher.admit(2) as ticket:
        left_over = ticket.submit(image(1))
        time.sleep(0.4)
        model.resume()
        running.result(10)
        ended = time.monotonic()
        left_over.result(10)
        assert time.monotonic() - ended >= 0.25


def test_a_batch_waits_for_images_that_are_being_decoded(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(max_delay_s=60.0)
    with batcher.admit(3) as ticket:
        futures = [ticket.submit(image(1)), ticket.submit(image(2))]
        assert not model.started.acquire(timeout=BLOCKED_S)
        futures.append(ticket.submit(image(3)))
        for future in futures:
            future.result(10)
    assert model.sizes == [3]


def test_images_are_not_decoded_while_a_batch_runs(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher()
    future = start_run(batcher, model)
    with batcher.admit(2) as ticket:
        decoders = [Decoder(ticket), Decoder(ticket)]
        assert not decoders[0].started.wait(BLOCKED_S)
        model.resume()
        future.result(10)
        for decoder in decoders:
            assert decoder.started.wait(10)
            decoder.finish.set()


def test_with_a_device_of_its_own_decoding_never_waits(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(cores=None)
    start_run(batcher, model)
    with batcher.admit(3) as ticket:
        decoders = [Decoder(ticket) for _ in range(3)]
        for decoder in decoders:
            assert decoder.started.wait(10)
            decoder.finish.set()


def test_images_are_decoded_in_order_of_arrival(make_sharing_batcher: MakeSharingBatcher, model: PausableModel) -> None:
    batcher = make_sharing_batcher()
    start_run(batcher, model)
    with batcher.admit(1) as a, batcher.admit(1) as b, batcher.admit(1) as c, batcher.admit(1) as d:
        decoders = []
        for number, ticket in enumerate((b, c, a, d), 1):
            decoders.append(Decoder(ticket))
            wait_until(lambda number=number: len(batcher._scheduler.waiting) == number)  # type: ignore[misc]
        model.resume()
        for decoder in decoders[:2]:
            assert decoder.started.wait(10)
        assert not decoders[2].started.wait(BLOCKED_S)
        decoders[0].finish.set()
        assert decoders[2].started.wait(10)
        assert not decoders[3].started.is_set()
        for decoder in decoders:
            decoder.finish.set()


def test_a_batch_waits_for_an_image_that_is_being_decoded_as_long_as_a_run_takes(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    running = start_run(batcher := make_sharing_batcher(), model)
    time.sleep(4 * BLOCKED_S)
    model.resume()
    with batcher.admit(1) as ticket, batcher.admit(1) as other:
        assert running.result(10)
        decoder = Decoder(other)
        assert decoder.started.wait(10)
        future = ticket.submit(image(1))
        assert not model.started.acquire(timeout=2 * BLOCKED_S)
        future.result(10)
    decoder.finish.set()


@pytest.mark.parametrize("_repetition", range(8))  # which thread wakes up first varies
def test_a_batch_that_is_ready_takes_precedence_over_decoding(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel, _repetition: int
) -> None:
    batcher = make_sharing_batcher()
    with batcher.admit(2) as ticket, batcher.admit(1) as ready, batcher.admit(1) as later:
        decoding = [Decoder(ticket), Decoder(ticket)]
        for decoder in decoding:
            assert decoder.started.wait(10)
        waiting = Decoder(later)
        wait_until(lambda: len(batcher._scheduler.waiting) == 1)
        model.pause()
        future = ready.submit(image(5))
        decoding[0].finish.set()
        assert model.started.acquire(timeout=10)
        assert not waiting.started.wait(BLOCKED_S / 4)
        decoding[1].finish.set()
        model.resume()
        future.result(10)
        assert waiting.started.wait(10)
        waiting.finish.set()


def test_a_request_released_while_it_waits_for_a_core_decodes_nothing(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher()
    start_run(batcher, model)
    with batcher.admit(1) as ticket:
        decoder = Decoder(ticket)
        assert not decoder.started.wait(BLOCKED_S)
    decoder.join(10)
    assert decoder.cancelled is not None
    assert not decoder.started.is_set()


def test_a_dead_model_is_reported_once_and_frees_its_cores(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel, deaths: list[RunnerDeadError]
) -> None:
    batcher = make_sharing_batcher()
    futures = [start_run(batcher, model)]
    with batcher.admit(2) as ticket:
        futures.append(ticket.submit(image(3)))
        decoder = Decoder(ticket)
        assert not decoder.started.wait(BLOCKED_S)
        model.fails = lambda _: True
        model.resume()
        for future in futures:
            with pytest.raises(RunnerDeadError, match="injected"):
                future.result(10)
        assert decoder.started.wait(10)
        decoder.finish.set()
    batcher.close()
    assert [str(death) for death in deaths] == [str(batcher.death)]


def test_close_answers_the_queued_images(make_sharing_batcher: MakeSharingBatcher, model: PausableModel) -> None:
    batcher = make_sharing_batcher(max_delay_s=60.0)
    model.pause()
    with batcher.admit(12) as ticket:  # one image is still being decoded
        futures = [ticket.submit(image(value)) for value in range(11)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        model.resume()
        closing.join(10)
        assert not closing.is_alive()
        assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 11
    assert sum(model.sizes) == 11


def test_the_thread_that_decoded_the_last_image_runs_the_batch(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(max_delay_s=60.0)
    with batcher.admit(2) as ticket:
        decoders = [Decoder(ticket, queue=True), Decoder(ticket, queue=True)]
        for decoder in decoders:
            assert decoder.started.wait(10)
            decoder.finish.set()
            wait_until(lambda decoder=decoder: decoder.prediction is not None)  # type: ignore[misc]
        for decoder in decoders:
            assert decoder.prediction is not None
            decoder.prediction.result(10)
    assert (model.sizes, model.threads) == ([2], [decoders[1]])


def test_a_thread_that_waits_for_a_core_runs_a_batch_that_becomes_ready(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(max_delay_s=60.0, cores=1)
    with batcher.admit(1) as first, batcher.admit(1) as other:
        decoding = Decoder(first, queue=True)
        assert decoding.started.wait(10)
        waiting = Decoder(other, queue=True)
        wait_until(lambda: len(batcher._scheduler.waiting) == 1)
        model.pause()
        decoding.finish.set()  # its image is queued, and waits for the other one
        assert waiting.started.wait(10)
        waiting.finish.set()
        assert model.started.acquire(timeout=10)
        model.resume()
        wait_until(lambda: bool(model.sizes))
    assert (model.sizes, model.threads) == ([2], [waiting])


def test_streams_run_at_the_same_time_and_images_are_decoded_on_the_other_cores(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(streams=2, cores=2)
    with batcher.admit(1), batcher.admit(1) as ticket, batcher.admit(1) as third:
        model.pause()
        futures = [ticket.submit(image(1))]
        assert model.started.acquire(timeout=10)
        decoder = Decoder(third, queue=True)
        assert decoder.started.wait(10), "a run on one stream leaves a core free"
        decoder.finish.set()
        assert model.started.acquire(timeout=10), "the second run starts during the first one"
        blocked = Decoder(batcher.admit(1))
        assert not blocked.started.wait(BLOCKED_S), "both cores run"
        model.resume()
        assert blocked.started.wait(10)
        blocked.finish.set()
        futures[0].result(10)
    assert model.all_cores[:2] == [False, False]


def answer_two_clients_during_a_run(batcher: Batcher, ticket: Ticket, model: PausableModel) -> None:
    """Start a run in the thread that decodes its image, which waits until `resume`, and answer two other requests."""
    model.pause()
    Decoder(ticket, queue=True).finish.set()
    assert model.started.acquire(timeout=10)
    with batcher.admit(2):
        pass


def test_a_batch_waits_for_the_next_request_of_a_client_that_was_answered(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(streams=2, max_delay_s=60.0)
    with batcher.admit(1) as first, batcher.admit(1) as second:
        answer_two_clients_during_a_run(batcher, first, model)
        futures = [second.submit(image(2))]
        assert not model.started.acquire(timeout=BLOCKED_S), "the third client sends its next request soon"
        with batcher.admit(1) as third:
            futures.append(third.submit(image(3)))
            assert model.started.acquire(timeout=10)
            model.resume()
            assert all(future.result(10) for future in futures)
    wait_until(lambda: sorted(model.sizes) == [1, 2])  # the run of the first one may end later


def test_a_batch_waits_at_most_the_delay_for_clients_that_do_not_return(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(streams=2, max_delay_s=0.2)
    with batcher.admit(1) as first, batcher.admit(1) as second:
        answer_two_clients_during_a_run(batcher, first, model)
        started = time.monotonic()
        second.submit(image(2))
        assert model.started.acquire(timeout=10)
        assert time.monotonic() - started >= 0.15


def test_only_a_request_that_is_alone_gets_all_cores(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(streams=2)
    with batcher.admit(1) as ticket:
        ticket.submit(image(1)).result(10)
    with batcher.admit(1) as ticket, batcher.admit(1):
        ticket.submit(image(1)).result(10)
    with batcher.admit(4) as ticket:
        for future in [ticket.submit(image(value)) for value in range(4)]:
            future.result(10)
    assert model.all_cores[:2] == [True, False]
    assert sum(model.sizes[2:]) == 4
    assert max(model.sizes[2:]) <= 2, "each stream gets an equal part"


def test_while_a_waiting_thread_runs_a_batch_the_next_one_decodes(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher(streams=2)
    with batcher.admit(3) as ticket, batcher.admit(1) as first, batcher.admit(1) as second:
        decoding = [Decoder(ticket), Decoder(ticket)]
        for decoder in decoding:
            assert decoder.started.wait(10)
        waiting = Decoder(first)
        wait_until(lambda: len(batcher._scheduler.waiting) == 1)
        model.pause()
        future = ticket.submit(image(1), wake=False)  # only the waiting thread is woken for it, below
        decoding[0].fails = True  # otherwise, its thread would run the batch
        decoding[0].finish.set()
        assert model.started.acquire(timeout=10)
        next_one = Decoder(second)
        decoding[1].finish.set()
        assert next_one.started.wait(10)
        assert model.threads == [waiting]
        model.resume()
        assert waiting.started.wait(10), "it takes its turn again"
        for decoder in (waiting, next_one):
            decoder.finish.set()
        future.result(10)


def test_a_batch_runs_although_the_thread_that_was_woken_for_it_was_released(
    make_sharing_batcher: MakeSharingBatcher, model: PausableModel
) -> None:
    batcher = make_sharing_batcher()
    with batcher.admit(2) as ticket, batcher.admit(1) as leaving:
        model.pause()
        running = Decoder(ticket, queue=True)
        running.finish.set()
        assert model.started.acquire(timeout=10)
        waiting = Decoder(leaving)
        wait_until(lambda: len(batcher._scheduler.waiting) == 1)
        future = ticket.submit(image(1))
        leaving.released = True  # as if the run ended just before the rest of the release
        model.resume()
        future.result(10)
        waiting.join(10)
        assert waiting.cancelled is not None


def test_a_released_request_decodes_nothing_on_a_free_core(make_sharing_batcher: MakeSharingBatcher) -> None:
    with make_sharing_batcher().admit(1) as ticket:
        pass
    decoder = Decoder(ticket)
    decoder.join(10)
    assert decoder.cancelled is not None
    assert not decoder.started.is_set()
