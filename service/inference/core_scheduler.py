"""Core scheduling: when an image may be decoded and when a batch may run, if both use the same cores.

Guarantees:
- A run has its cores for itself: threads that share a core with decoding would keep the others waiting.
- Images are decoded in order of arrival, one on each free core. A batch that is ready to run takes precedence.

Out of scope: choosing the images of a batch. All methods must be called with the lock held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from service.inference.admission import Slots


class CoreScheduler:
    """Divides the cores between runs and decoding threads."""

    def __init__(
        self, lock: threading.Lock, *, cores: int | None, streams: int, batch_is_ready: Callable[[], bool]
    ) -> None:
        """cores: shared by runs and decoding, or None if the model runs on a device of its own (CUDA).
        streams: runs at the same time, each on an equal part of the cores.
        """
        self.changed = threading.Condition(lock)  # decoding threads wait for it
        self.cores = cores
        self.streams = streams
        self._batch_is_ready = batch_is_ready
        self.waiting: deque[Slots] = deque()  # to decode, in order of arrival
        self.decoding = 0  # images that have a core now
        self._runs: list[int] = []  # the cores of each run in progress

    def start_decoding(self, slots: Slots) -> None:
        """Take a core for the request, which `may_decode`."""
        self.decoding += 1
        self.stop_waiting(slots)

    def stop_waiting(self, slots: Slots) -> None:
        """Let the next request decode, because this one does not wait for a core any more."""
        self.waiting.remove(slots)
        self.changed.notify_all()

    def end_decoding(self) -> None:
        """Free the core of a decoded image."""
        self.decoding -= 1
        self.changed.notify_all()

    def may_decode(self, slots: Slots) -> bool:
        """Return whether a core is free, and it is the turn of this request."""
        if self.cores is None:
            return True
        return self.waiting[0] is slots and self.has_free_core() and not self._batch_is_ready()

    @property
    def free_cores(self) -> int | None:
        """Cores without a run or a decoding thread; None if runs and decoding need not wait for one another.

        Negative while a run on several cores started before all of them were free.
        """
        return None if self.cores is None else self.cores - self.decoding - sum(self._runs)

    def has_free_core(self) -> bool:
        """Return whether an image could be decoded, or a batch could run."""
        return self.free_cores is None or self.free_cores > 0

    @property
    def running(self) -> int:
        """Runs in progress."""
        return len(self._runs)

    def has_free_stream(self) -> bool:
        """Return whether another run may take place, as soon as a core is free."""
        return len(self._runs) < self.streams

    def can_run(self) -> bool:
        """Return whether a run may start now."""
        return self.has_free_stream() and self.has_free_core()

    def start_run(self, *, all_cores: bool) -> int:
        """Reserve the cores of a stream, or all cores, which must be free. Returns their number, for `end_run`."""
        reserved = 0 if self.cores is None else self.cores if all_cores else self.cores // self.streams
        self._runs.append(reserved)
        self.changed.notify_all()  # decoding threads gave precedence to this batch
        return reserved

    def end_run(self, reserved: int) -> None:
        """Free the cores of a finished run."""
        self._runs.remove(reserved)
        self.changed.notify_all()
