"""A budget of memory, from which threads take shares.

Guarantees: the sum of the shares stays within the budget, in order of arrival. A share larger than the budget is given
when no other is held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """`total` bytes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Wait for `size` bytes, and hold them inside the block."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            while self._waiting[0] is not turn or not self._fits(size):
                self._changed.wait()
            self._waiting.popleft()
            self.used += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self.total
