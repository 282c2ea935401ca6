"""Graceful shutdown: the first Ctrl-C, SIGTERM or SIGHUP requests a stop, the second one interrupts immediately.

Guarantees: a terminal that was closed (SIGHUP) does not end the process: later output to it is dropped. A process that
ignores SIGHUP, as under `nohup`, keeps ignoring it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_STANDARD_STREAMS: Final = (0, 1, 2)


@contextmanager
def stop_on_signals(on_stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Yield an event. The first signal sets it and calls `on_stop`; the second one raises KeyboardInterrupt.

    A SIGHUP is never a second one: a terminal that is closed sends it more than once, from the kernel and the shell.

    `on_stop` runs in a thread of its own. Otherwise it could deadlock: the signal handler interrupts the main thread,
    which may hold a lock that `on_stop` needs, such as that of the terminal.
    """
    stop = threading.Event()
    terminals = [stream for stream in _STANDARD_STREAMS if _is_terminal(stream)]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _detach(terminals)
        if stop.is_set():
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        stop.set()
        threading.Thread(target=on_stop).start()

    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_terminal(stream: int) -> bool:
    try:
        return os.isatty(stream)
    except OSError:
        return False


def _detach(terminals: list[int]) -> None:
    """Connect streams of a closed terminal to /dev/null. Writing to the terminal would fail."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in terminals:
        os.dup2(nowhere, stream)
    os.close(nowhere)
