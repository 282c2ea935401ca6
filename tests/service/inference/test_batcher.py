"""The batch loop with a real ONNX model that the test can pause."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from model_store.errors import RunnerError
from model_store.image import views
from model_store.runtime.runner import Runner, average_views
from service.errors import DrainingError, RunnerDeadError
from service.inference.admission import Prediction
from service.inference.batcher import Batcher
from tests.service.inference.conftest import MakeBatcher
from tests.support.pausable_model import PausableModel, image


def keep_busy(model: PausableModel, batcher: Batcher) -> Future[Prediction]:
    """Keep the model busy with one image until it is resumed."""
    model.pause()
    future = batcher.admit(1).submit(image(255))
    assert model.started.acquire(timeout=10)
    return future


def test_predictions_equal_those_of_each_image_alone(
    make_batcher: MakeBatcher, model: PausableModel, runner: Runner
) -> None:
    batcher = make_batcher()
    busy = keep_busy(model, batcher)
    with batcher.admit(6) as ticket:
        futures = [ticket.submit(image(value), 1 + 9 * (value % 2)) for value in range(6)]
        model.resume()
        busy.result(10)
        for value, future in enumerate(futures):
            count = 1 + 9 * (value % 2)
            alone = runner.run(views(image(value), count))
            prediction = future.result(10)
            np.testing.assert_allclose(
                prediction.probabilities, average_views(alone.probabilities, count)[0], atol=1e-6
            )
            np.testing.assert_allclose(prediction.fc7, average_views(alone.fc7, count)[0], atol=1e-5)


def test_an_idle_model_runs_a_single_image_immediately(make_batcher: MakeBatcher, model: PausableModel) -> None:
    with make_batcher(max_delay_s=60.0).admit(1) as ticket:
        ticket.submit(image(1)).result(10)
    assert model.sizes == [1]


@pytest.mark.parametrize(("count", "sizes"), [(15, [1, 8, 7]), (10, [1, 6, 4])])
def test_images_queued_while_the_model_is_busy_run_in_equal_batches(
    count: int, sizes: list[int], make_batcher: MakeBatcher, model: PausableModel
) -> None:
    batcher = make_batcher(max_batch=8)
    keep_busy(model, batcher)
    with batcher.admit(count) as ticket:
        futures = [ticket.submit(image(value)) for value in range(count)]
        model.resume()
        for future in futures:
            future.result(10)
    assert model.sizes == sizes


def test_a_batch_waits_for_pending_images_until_it_is_full(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher(max_batch=3, max_delay_s=60.0)
    keep_busy(model, batcher)
    with batcher.admit(5) as ticket:
        futures = [ticket.submit(image(1))]
        model.resume()
        assert not model.started.acquire(timeout=0.1)
        futures += [ticket.submit(image(2)), ticket.submit(image(3))]
        for future in futures:
            future.result(10)
    assert model.sizes == [1, 3]


def test_requests_take_turns(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher(max_batch=4)
    keep_busy(model, batcher)
    with batcher.admit(8) as many, batcher.admit(1) as single:
        futures = [many.submit(image(value)) for value in range(8)]
        futures.append(single.submit(image(100)))
        model.resume()
        for future in futures:
            future.result(10)
    assert model.marks[1] == [0, 100, 1, 2]


def test_cancelled_and_released_images_are_not_run(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher()
    keep_busy(model, batcher)
    with batcher.admit(2) as kept:
        cancelled, wanted = kept.submit(image(1)), kept.submit(image(2))
        with batcher.admit(2) as left:
            abandoned = [left.submit(image(3)), left.submit(image(4))]
        assert cancelled.cancel()
        model.resume()
        wanted.result(10)
    assert model.marks[1] == [2]
    for future in abandoned:
        with pytest.raises(CancelledError):
            future.result(10)


def test_an_image_submitted_after_its_slots_are_released_is_not_run(
    make_batcher: MakeBatcher, model: PausableModel
) -> None:
    batcher = make_batcher()
    with batcher.admit(1) as left:
        pass
    assert left.submit(image(1)).cancelled()
    model.resume()
    with batcher.admit(1) as ticket:
        ticket.submit(image(2)).result(10)
    assert model.marks == [[2]]


def test_a_failed_batch_is_repeated_image_by_image(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher()
    keep_busy(model, batcher)
    model.fails = lambda pixels: bool((pixels[:, 0, 0, 0] == 7).any())
    with batcher.admit(3) as ticket:
        futures = [ticket.submit(image(value)) for value in (5, 7, 9)]
        model.resume()
        assert futures[0].result(10).probabilities.shape == (6,)
        with pytest.raises(RunnerError, match="injected"):
            futures[1].result(10)
        assert futures[2].result(10).fc7.shape == (4096,)
    assert batcher.death is None


def test_a_single_failing_image_does_not_kill_the_model(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher()
    model.fails = lambda pixels: bool((pixels[:, 0, 0, 0] == 7).any())
    with batcher.admit(2) as ticket:
        with pytest.raises(RunnerError):
            ticket.submit(image(7)).result(10)
        ticket.submit(image(8)).result(10)


def test_a_dead_model_fails_all_waiting_images_immediately(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher(max_batch=1)
    busy = keep_busy(model, batcher)
    model.fails = lambda _: True
    with batcher.admit(3) as ticket:
        futures = [busy, *(ticket.submit(image(value)) for value in range(3))]
        model.resume()
        for future in futures:
            with pytest.raises(RunnerDeadError, match="injected"):
                future.result(10)
        with pytest.raises(RunnerDeadError):
            ticket.submit(image(1))
    with pytest.raises(RunnerDeadError):
        batcher.admit(1)
    batcher.close()


def test_close_answers_queued_images_and_admits_no_more(make_batcher: MakeBatcher, model: PausableModel) -> None:
    batcher = make_batcher(max_batch=2, max_delay_s=60.0)
    keep_busy(model, batcher)
    ticket = batcher.admit(3)
    futures = [ticket.submit(image(value)) for value in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            batcher.admit(1)
        except DrainingError:
            break
    model.resume()
    closing.join(10)
    assert [future.result(0).fc7.shape for future in futures] == [(4096,)] * 3
