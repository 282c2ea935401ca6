"""Decodes image files under limits of time and memory: the only way from bytes to prepared pixels.

Guarantees: the cost of an image is estimated from its headers first, and an image over a limit is not decoded. An
ordinary image is decoded in the calling thread. An expensive or unpredictable one is decoded in a worker process, which
is killed and replaced if it takes longer than the limit, uses more memory or crashes. The estimated memory of all
images that are being decoded stays within a budget; ordinary and expensive images have separate shares of it, so that
neither waits for the other.
Out of scope: how an image is decoded (`model_store.image`), and deadlines of requests (the caller cancels the future).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from model_store.cores import usable_cores
from model_store.decoder.limits import DecodeLimits, prepare_within
from model_store.decoder.memory_budget import MemoryBudget
from model_store.decoder.priority_pool import PriorityPool
from model_store.decoder.worker import DecodeWorker
from model_store.decoding.cost import estimate
from model_store.decoding.decode_cost import DecodeCost
from model_store.errors import (
    DecodeMemoryError,
    DecoderBusyError,
    DecoderCrashError,
    DecodeTimeError,
    ImageError,
    ImageTooLargeError,
)
from model_store.image import PreparedImage
from model_store.memory import available

Event = Literal["refused", "stopped", "crashed"]

ORDINARY_SECONDS: Final = 0.1
ORDINARY_BYTES: Final = 32_000_000
_ORDINARY_SHARE: Final = 4  # the fraction of the budget that is reserved for ordinary images is 1 / this
_UNKNOWN_MEMORY: Final = 2_000_000_000  # of a system that does not tell
_IDLE_S: Final = 30.0  # then idle worker processes end
# An expensive image takes its turn as if it had arrived later, by this many seconds for each second of decoding.
_DELAY_FACTOR: Final = 2.0


def is_ordinary(cost: DecodeCost) -> bool:
    """Return whether an image is decoded in a thread, because it is cheap and predictable."""
    return cost.predictable and cost.seconds <= ORDINARY_SECONDS and cost.bytes <= ORDINARY_BYTES


class Decoder:
    """Decodes images for any number of threads. `close`, or the end of a `with` block, ends its processes."""

    def __init__(
        self,
        limits: DecodeLimits | None = None,
        *,
        workers: int | None = None,
        memory: int | None = None,
        niceness: int = 0,
        on_event: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        """workers: processes for expensive images; by default, half of the cores. Each is started when it is needed.

        memory: the budget in bytes; by default, half of the available memory. niceness: of the processes. on_event:
        called with what became of an image that was not decoded because of its cost.
        """
        self.limits = limits or DecodeLimits()
        self._on_event = on_event
        if memory is None:
            memory = (available() or _UNKNOWN_MEMORY) // 2
        self._ordinary = MemoryBudget(memory // _ORDINARY_SHARE)
        self._expensive = MemoryBudget(memory - memory // _ORDINARY_SHARE)
        size = workers or max(1, usable_cores() // 2)
        self._workers = [DecodeWorker(self.limits, niceness) for _ in range(size)]
        self._idle_workers = list(self._workers)
        self._lock = threading.Lock()
        self._in_threads = 0
        self._closed = False
        self._pool = PriorityPool(size, "fc7-decode-worker", idle_s=_IDLE_S, on_idle=self._end_idle_worker)

    @property
    def running(self) -> int:
        """The number of images that are being decoded, or wait for memory."""
        return self._in_threads + self._pool.running

    @property
    def waiting(self) -> int:
        """The number of images that wait for a worker process."""
        return self._pool.waiting

    @property
    def worker_pids(self) -> list[int]:
        """The process IDs of the running workers."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    def decode(self, data: bytes) -> PreparedImage:
        """Decode and prepare an image file. An expensive one waits for a worker process, after those of `schedule`.

        Raises ImageError, RuntimeError after `close`.
        """
        if self._closed:
            raise RuntimeError("the decoder is closed")
        cost = self.check(data)
        if is_ordinary(cost):
            return self.decode_here(data, cost)
        return self.schedule(data, cost, background=True).result()

    def prepare(self, data: bytes) -> NDArray[np.uint8]:
        """As `decode`, but return only the pixels: uint8 [256,256,3], RGB."""
        return self.decode(data).pixels

    def check(self, data: bytes) -> DecodeCost:
        """Return the cost of decoding an image file. Raises ImageError if it is over a limit or has no known format."""
        cost = estimate(data)
        try:
            self.limits.check(cost)
        except ImageError:
            self._on_event("refused")
            raise
        return cost

    def decode_here(self, data: bytes, cost: DecodeCost) -> PreparedImage:
        """Decode an ordinary image in this thread. Raises ImageError."""
        with self._ordinary.share(cost.bytes), self._counted():
            return prepare_within(self.limits, data)

    def schedule(
        self, data: bytes, cost: DecodeCost, *, longest_wait: float | None = None, background: bool = False
    ) -> Future[PreparedImage]:
        """Decode an expensive image in a worker process. The future can be cancelled while the image waits.

        longest_wait: seconds. background: let others go first. Raises DecoderBusyError if the wait would probably be
        longer. The future raises ImageError.
        """
        delay = cost.seconds * _DELAY_FACTOR + (60.0 if background else 0.0)
        if longest_wait is not None:
            wait = self._pool.expected_wait(delay)
            if wait > longest_wait:
                raise DecoderBusyError(max(1, round(wait)))
        return self._pool.schedule(lambda: self._decode_in_worker(data, cost), delay=delay, seconds=cost.seconds)

    def close(self) -> None:
        """Cancel the waiting images, end the processes and free their memory. Later calls of `decode` raise."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._pool.shutdown()
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_in_worker(self, data: bytes, cost: DecodeCost) -> PreparedImage:
        with self._expensive.share(cost.bytes + len(data)):
            with self._lock:
                worker = self._idle_workers.pop()  # the one that was used last
            try:
                return worker.decode(data)
            except (DecodeTimeError, DecodeMemoryError):
                self._on_event("stopped")
                raise
            except DecoderCrashError:
                self._on_event("crashed")
                raise
            except ImageTooLargeError:
                self._on_event("refused")
                raise
            finally:
                with self._lock:
                    self._idle_workers.append(worker)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._in_threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_threads -= 1

    def _end_idle_worker(self) -> None:
        # Each thread of the pool ends one process. The others keep one worker for each of the other threads.
        with self._lock:
            worker = self._idle_workers.pop(0)
        worker.close()
        with self._lock:
            self._idle_workers.insert(0, worker)
