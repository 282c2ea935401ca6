"""Core scheduling: when an image may be decoded and when a batch may run, if both use the same cores.

Guarantees:
- A batch runs alone on all cores: threads that share a core with decoding would keep the others waiting.
- Images are decoded in order of arrival, one on each core. A batch that is ready to run takes precedence.
- A thread that waits for a core stops waiting when the slots of its request are released.

Out of scope: choosing the images of a batch. All methods but `core_for` must be called with the lock held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from service.inference.admission import Slots


class CoreScheduler:
    """Divides the cores between batches and decoding threads.

    `run_may_start` and `core_may_be_free` are the conditions on which threads wait. They are separate because a
    thread that wakes up without work competes for the GIL with a thread that has a result to deliver.
    """

    def __init__(self, lock: threading.Lock, *, cores: int | None, batch_is_ready: Callable[[], bool]) -> None:
        """cores: shared by runs and decoding, or None if the model runs on a device of its own (CUDA)."""
        self.run_may_start = threading.Condition(lock)
        self.core_may_be_free = threading.Condition(lock)
        self.cores = cores
        self._batch_is_ready = batch_is_ready
        self._lock = lock
        self._waiting_to_decode: deque[Slots] = deque()  # in order of arrival
        self.decoding = 0  # images that have a core now
        self.running = False

    @contextmanager
    def core_for(self, slots: Slots) -> Iterator[None]:
        """Wait for a free core and hold it while one image is decoded. Raises CancelledError if slots are released."""
        with self._lock:
            self._waiting_to_decode.append(slots)
            while not (slots.released or self._may_decode(slots)):
                self.core_may_be_free.wait()
            self._waiting_to_decode.remove(slots)
            self.core_may_be_free.notify_all()
            if slots.released:
                raise CancelledError
            self.decoding += 1
            self.run_may_start.notify()  # the wait for more images depends on how many are being decoded
        try:
            yield
        finally:
            with self._lock:
                self.decoding -= 1
                self.run_may_start.notify()
                self.core_may_be_free.notify_all()

    def has_free_core(self) -> bool:
        """Return whether a core is free, or runs and decoding need not wait for one another."""
        return self.cores is None or (not self.running and self.decoding < self.cores)

    def start_run(self) -> None:
        """Reserve all cores for a batch."""
        self.running = True
        self.core_may_be_free.notify_all()  # decoding threads gave precedence to this batch

    def end_run(self) -> None:
        """Free the cores of a finished batch."""
        self.running = False
        self.core_may_be_free.notify_all()

    def _may_decode(self, slots: Slots) -> bool:
        if self.cores is None:
            return True
        return self._waiting_to_decode[0] is slots and self.has_free_core() and not self._batch_is_ready()
