"""The process of `fc7 serve`: signals, the time limit of the shutdown, and the limit of open files.

Guarantees:
- SIGTERM, SIGINT (Ctrl-C) and SIGHUP start the shutdown. While the service starts, they end the process instead.
- A second signal ends the process immediately, with exit code 128 plus the signal's number.
- Once the shutdown has started, the process ends within its time limit, whatever a thread, a request or a library waits
  for. If it is ended at the limit, its exit code is `TIMED_OUT`. That is as safe as a kill: every write is atomic.
- A signal handler takes no lock that the interrupted code may hold.

Out of scope: what the shutdown does (see `service.server`). Signals are not handled while a library in C holds the GIL.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

TIMED_OUT: Final = 124
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FLUSH_S: Final = 0.1
# Descriptors that are not available to connections: each of 16 index threads reads the catalog through two, and
# uploads, snapshots and pages need some.
_RESERVED_DESCRIPTORS: Final = 40
_MIN_CONNECTIONS: Final = 4


class Shutdown:
    """Starts the shutdown at the first signal, and ends the process at the second one or at the time limit."""

    def __init__(self) -> None:
        """Handle signals from now on. Must be called in the main thread."""
        self._requested: queue.SimpleQueue[int] = queue.SimpleQueue()  # `put` is reentrant, unlike a lock
        self._signalled = False
        self._start: Callable[[], object] | None = None
        self._on_timeout: Callable[[], None] = lambda: None
        self._timeout_s = 0.0
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
                signal.signal(number, self._handle)
        threading.Thread(target=self._watch, name="fc7-shutdown", daemon=True).start()

    def serve(self, timeout_s: float, start: Callable[[], object], on_timeout: Callable[[], None]) -> None:
        """From now on, start the shutdown with `start()`, which is called in another thread and must not block.

        timeout_s: time from the signal to the end of the process. on_timeout: called before the process is ended.
        """
        self._timeout_s, self._on_timeout = timeout_s, on_timeout
        self._start = start

    def request(self, exit_code: int) -> None:
        """Start the shutdown without a signal. exit_code: if the process has to be ended at the limit."""
        self._requested.put(exit_code)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True
        self._requested.put(TIMED_OUT)

    def _watch(self) -> None:
        exit_code = self._requested.get()
        started = time.monotonic()
        if self._start is None:  # nothing was answered or written yet
            _exit(0)
        with suppress(RuntimeError):  # the event loop is closed: the process is ending
            self._start()
        time.sleep(max(0.0, started + self._timeout_s - _FLUSH_S - time.monotonic()))
        self._on_timeout()
        _exit(exit_code)


def running_threads() -> list[str]:
    """Return the names of the running threads, without the main thread and those that only wait for work to log."""
    return sorted({thread.name for thread in threading.enumerate()} - {"MainThread", "fc7-log", "fc7-shutdown"})


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as its hard limit permits. The usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some containers forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections() -> int:
    """Return how many connections may be open, so that enough descriptors are left for the index and for uploads."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else _RESERVED_DESCRIPTORS
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max(_MIN_CONNECTIONS, soft - used - _RESERVED_DESCRIPTORS)


def _exit(code: int) -> NoReturn:
    """End the process without waiting for its threads. The log has a moment to be written."""
    time.sleep(_FLUSH_S)
    os._exit(code)
