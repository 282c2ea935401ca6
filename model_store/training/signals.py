"""Ctrl-C and SIGTERM: the first asks to stop at the next good place, the second interrupts at once.

Does not: stop anything; whoever works asks the event.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals(told: Callable[[], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets, calling `told`; the second raises KeyboardInterrupt.

    `told` is called in a thread of its own: a handler runs between any two steps of the main thread, and what `told`
    needs (the terminal, say) may be held by what it interrupts.
    """
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        threading.Thread(target=told).start()

    former = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
