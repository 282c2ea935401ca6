"""Graceful shutdown: the first Ctrl-C or SIGTERM requests a stop, the second one interrupts immediately."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals(on_stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Yield an event. The first SIGINT or SIGTERM sets it and calls `on_stop`; the second raises KeyboardInterrupt.

    `on_stop` runs in a thread of its own. Otherwise it could deadlock: the signal handler interrupts the main thread,
    which may hold a lock that `on_stop` needs, such as that of the terminal.
    """
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        threading.Thread(target=on_stop).start()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
