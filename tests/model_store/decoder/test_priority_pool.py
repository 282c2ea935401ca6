"""The order of a priority pool, cancellation, and the memory budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from model_store.decoder.memory_budget import MemoryBudget
from model_store.decoder.priority_pool import PriorityPool
from tests.support.server import wait_until


@pytest.fixture
def pool() -> Iterator[PriorityPool]:
    with PriorityPool(1, "test") as pool:
        yield pool


@contextmanager
def blocked(pool: PriorityPool) -> Iterator[None]:
    """Keep all threads of the pool busy."""
    gate = threading.Event()
    for _ in range(pool.size):
        pool.submit(gate.wait)
    try:
        wait_until(lambda: pool.running == pool.size)
        yield
    finally:
        gate.set()


def test_cheap_jobs_overtake_expensive_ones_that_arrived_shortly_before(pool: PriorityPool) -> None:
    order: list[str] = []
    with blocked(pool):
        jobs = [pool.schedule(partial(order.append, name), delay=delay) for name, delay in (("slow", 5), ("a", 0))]
        jobs.append(pool.schedule(partial(order.append, "medium"), delay=0.1))
        time.sleep(0.15)
        jobs.append(pool.schedule(partial(order.append, "late")))  # "medium" arrived long enough before
    for job in jobs:
        job.result(5)
    assert order == ["a", "medium", "late", "slow"]


def test_a_cancelled_job_never_starts_and_leaves_the_queue(pool: PriorityPool) -> None:
    started: list[int] = []
    with blocked(pool):
        job = pool.schedule(partial(started.append, 1), seconds=3)
        assert pool.waiting == 1
        assert pool.expected_wait() == 3
        assert job.cancel()
        assert pool.waiting == 0
    pool.submit(int).result(5)
    assert not started


def test_busy_seconds_counts_only_while_no_thread_is_free() -> None:
    with PriorityPool(2, "test") as pool:
        assert pool.busy_seconds() == 0
        with blocked(pool):
            time.sleep(0.1)
            assert pool.busy_seconds() >= 0.1
        wait_until(lambda: pool.busy_seconds() == 0)


def test_an_exception_is_delivered_and_the_thread_continues(pool: PriorityPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(5)
    assert pool.submit(lambda: 7).result(5) == 7


def test_shutdown_can_cancel_waiting_jobs() -> None:
    pool = PriorityPool(1, "test")
    with blocked(pool):
        waiting = pool.submit(int)
        pool.shutdown(wait=False, cancel_futures=True)
        assert waiting.cancelled()
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(int)


def test_the_budget_is_never_exceeded_and_everyone_gets_a_share() -> None:
    budget, lock = MemoryBudget(100), threading.Lock()
    used, peak, given = 0, 0, []

    def take(size: int) -> None:
        nonlocal used, peak
        with budget.share(size):
            with lock:
                used += size
                peak = max(peak, used)
                given.append(size)
            time.sleep(0.002)
            with lock:
                used -= size

    sizes = [10, 90, 40, 40, 5, 100, 1] * 10
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(take, sizes))
    assert peak <= 100
    assert sorted(given) == sorted(sizes)


def test_a_share_above_the_budget_is_given_alone() -> None:
    budget = MemoryBudget(10)
    with budget.share(50):
        assert budget.used == 50
    assert budget.used == 0
