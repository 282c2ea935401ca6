"""Admission to the queue: all or nothing, within the queue size, and at the measured rate."""

from __future__ import annotations

import threading
import time

import pytest

from service.errors import QueueFullError
from tests.service.inference.conftest import MakeBatcher
from tests.support.pausable_model import PausableModel, image


def test_admission_is_all_or_nothing(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(queue_size=4)
    with batcher.admit(3):
        with pytest.raises(QueueFullError) as refused:
            batcher.admit(2)
        assert refused.value.retry_after >= 1
        assert refused.value.limit == 4
        with batcher.admit(1):
            assert batcher.admitted == 4
    assert batcher.admitted == 0


def test_concurrent_admissions_never_exceed_the_queue_size(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(queue_size=10)
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


def test_retry_after_follows_the_measured_rate(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(queue_size=4000)
    with batcher.admit(1) as ticket:
        ticket.submit(image(1)).result(10)
    batcher._admission.seconds_per_image = 0.1
    with batcher.admit(600), pytest.raises(QueueFullError) as refused:
        batcher.admit(4000)
    assert refused.value.retry_after == 30


def test_admission_is_limited_to_what_the_measured_rate_answers_within_the_deadline(
    make_batcher: MakeBatcher, model: PausableModel
) -> None:
    batcher = make_batcher(max_batch=1, deadline_s=2.0)
    with batcher.admit(1) as ticket:
        model.pause()
        slow = ticket.submit(image(1))
        time.sleep(0.4)
        model.resume()
        slow.result(10)
    # One image takes a little over 0.4 s, so 80 % of 2 s is enough for 3 or 4 images.
    assert batcher.refusal() is None
    with batcher.admit(1), batcher.admit(2):
        with pytest.raises(QueueFullError) as refused:
            batcher.admit(2)
        assert refused.value.limit in (3, 4)
    with batcher.admit(30):  # an idle server accepts any request
        assert batcher.refusal() is not None
    assert batcher.refusal() is None
