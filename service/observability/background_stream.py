"""Text streams that a thread writes to a file descriptor, so that logging never blocks or ends the service.

Guarantees: `write` returns immediately, whatever the state of the output (a full disk, a pipe that nobody reads, a
closed descriptor), and never raises an error of the output. Lines keep their order. Lines that do not fit in the queue,
or that the output rejects, are dropped and counted; once writing works again, one line says how many were lost. `write`
takes no lock, so a signal handler or a destructor that logs cannot deadlock with the line that it interrupted.
Out of scope: what libraries in C write to the descriptor themselves.
"""

from __future__ import annotations

import io
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_MAX_LINES: Final = 2_000
_MAX_CHARACTERS: Final = 32 * 1024  # of one write
_CHUNK_BYTES: Final = 64 * 1024
# The thread wakes up once for all lines of this time. Waking up for each would compete for the GIL with the requests.
_GATHER_S: Final = 0.005
_FLUSH_S: Final = 0.5
_STANDARD_DESCRIPTORS: Final = (0, 1, 2)


class BackgroundStream(io.TextIOBase):
    """A writable text stream. Its text is encoded as UTF-8; lone surrogates are escaped."""

    def __init__(self, descriptor: int | None, *, lost_line: Callable[[int], str], terminal: bool = False) -> None:
        """Start the thread.

        descriptor: None if there is no output; all lines are then lost. lost_line: returns the line that reports a
        number of lost lines.
        """
        self._descriptor, self._lost_line, self._terminal = descriptor, lost_line, terminal
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._counting = threading.RLock()
        self._lost = 0
        self._reported = 0
        self._torn = False  # the output ends in the middle of a line
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="fc7-log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """How many lines were lost."""
        return self._lost

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether the output is a terminal."""
        return self._terminal

    def write(self, text: str) -> int:
        """Queue the text, or drop it if too much is queued. Text of more than 32 KiB is cut."""
        if self._ended or self._queue.qsize() >= _MAX_LINES:
            self._lose(text.count("\n"))
        else:
            cut = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}...\n"
            self._queue.put(cut)
        return len(text)

    def finish(self, timeout_s: float) -> None:
        """Write the queued text, for at most `timeout_s` seconds, and stop. Later text is lost."""
        self._ended = True
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        more = True
        while more:
            text = self._queue.get()
            if text is None:
                return
            if not self._ended:
                time.sleep(_GATHER_S)
            texts, size = [text], len(text)
            while size < _CHUNK_BYTES and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    more = False
                    break
                texts.append(following)
                size += len(following)
            self._write("".join(texts).encode("utf-8", "backslashreplace"))

    def _write(self, data: bytes) -> None:
        written = self._send(b"\n" + data if self._torn else data)
        lost = self._lost - self._reported
        if written and lost and self._queue.empty():
            self._reported += lost
            self._send(self._lost_line(lost).encode())

    def _send(self, data: bytes) -> bool:
        """Write `data`; return whether all of it was written. Waits while a pipe is full."""
        rest = memoryview(data)
        while rest:
            try:
                if self._descriptor is None:
                    raise BrokenPipeError
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a pipe in non-blocking mode
                poll = select.poll()
                poll.register(self._descriptor or 0, select.POLLOUT)
                poll.poll()
            except OSError:
                self._torn = self._torn if len(rest) == len(data) else data[-len(rest) - 1 : -len(rest)] != b"\n"
                self._lose(bytes(rest).count(b"\n"))
                return False
        self._torn = not data.endswith(b"\n")
        return True

    def _lose(self, lines: int) -> None:
        with self._counting:
            self._lost += lines


@contextmanager
def background_output(lost_line: Callable[[int], str]) -> Iterator[Callable[[], int]]:
    """Replace standard output and standard error by background streams inside the block.

    Yields a function that returns how many lines were lost. At the end of the block, the streams have half a second to
    write what is queued.
    """
    before = sys.stdout, sys.stderr
    streams = [
        BackgroundStream(_descriptor_of(stream), lost_line=lost_line, terminal=bool(stream and stream.isatty()))
        for stream in before
    ]
    sys.stdout, sys.stderr = streams
    try:
        yield lambda: sum(stream.lost for stream in streams)
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.finish(_FLUSH_S)


def _descriptor_of(stream: io.TextIOBase | object | None) -> int | None:
    """Return the descriptor of a stream. None if the process was started without it (`>&-` in a shell)."""
    return stream.fileno() if isinstance(stream, io.TextIOBase) else None


def open_standard_descriptors() -> None:
    """Open /dev/null in place of closed standard descriptors.

    The next file to be opened, such as the catalog, would get their number, and a library in C that prints to standard
    error would write into it.
    """
    for descriptor in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
