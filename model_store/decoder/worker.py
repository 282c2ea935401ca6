"""A process that decodes images, one at a time, under limits of CPU time and memory.

Guarantees: an image that takes longer than the limit, needs more memory or crashes the decoder ends only this process.
The next image starts another one. The process does not inherit API keys or other secrets from the environment, and
its answers are parsed as plain JSON and pixels, never unpickled.
Out of scope: queueing; a worker is used by one thread at a time.
References: setrlimit(2): RLIMIT_CPU, RLIMIT_DATA. Where RLIMIT_DATA is not supported (macOS), memory is not limited.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np

from model_store import errors
from model_store.decoder.limits import DecodeLimits, prepare_within
from model_store.image import SIZE, PreparedImage

_PIXEL_BYTES: Final = SIZE * SIZE * 3
_START_S: Final = 60.0  # a start takes 0.2 s, but much longer on a machine that is swapping
_WALL_FACTOR: Final = 4  # a worker may have to share its core with other processes
_MARGIN: Final = 64 * 1024 * 1024  # memory beyond the estimate: stacks of threads, buffers
_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "COVERAGE_PROCESS_CONFIG")


class DecodeWorker:
    """The parent's side of a worker process, which is started when it is first used."""

    def __init__(self, limits: DecodeLimits, niceness: int = 0) -> None:
        """niceness: added to the priority value of the process; see nice(2)."""
        self._limits, self._niceness = limits, niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process ID of the running worker, or None."""
        return None if self._process is None else self._process.pid

    def decode(self, data: bytes) -> PreparedImage:
        """Decode and prepare an image file.

        Raises ImageError: what `inspect_and_prepare` raises, DecodeTimeError, DecodeMemoryError or DecoderCrashError.
        """
        connection = self._connect()
        try:
            connection.settimeout(self._limits.seconds * _WALL_FACTOR)
            connection.sendall(struct.pack(">Q", len(data)))
            connection.sendall(data)
            answer = _receive_message(connection)
            if "error" in answer:
                raise _error_of(answer)
            pixels = np.frombuffer(_receive(connection, _PIXEL_BYTES), np.uint8).reshape(SIZE, SIZE, 3)
            return PreparedImage(pixels=pixels, **answer)
        except TimeoutError:
            self.close()
            raise errors.DecodeTimeError(self._limits.seconds, self._limits.seconds) from None
        except (OSError, ValueError, TypeError) as error:
            raise self._cause_of_death() from error

    def kill(self) -> None:
        """End the process from any thread. A running `decode` raises DecoderCrashError."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process immediately, if it runs."""
        process, connection = self._process, self._socket
        self._process = self._socket = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def _connect(self) -> socket.socket:
        """Return the connection to the process, which is started if necessary."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it was killed while it was idle
        if self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair()
        with theirs:
            limits = json.dumps([self._limits.pixels, self._limits.bytes, self._limits.seconds, self._niceness])
            self._process = subprocess.Popen(  # noqa: S603 - only our own module is run
                [sys.executable, "-m", __name__, str(theirs.fileno()), limits],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff prints there
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent
            )
        self._socket = ours
        try:
            ours.settimeout(_START_S)
            _receive(ours, 1)
        except OSError as error:
            raise self._cause_of_death() from error
        return ours

    def _cause_of_death(self) -> errors.ImageError:
        """End the process, and return the error that says why it did not answer."""
        code = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=1)
        self.close()
        if code == -signal.SIGXCPU:
            return errors.DecodeTimeError(self._limits.seconds, self._limits.seconds)
        if code is not None and code < 0:
            return errors.DecoderCrashError(f"it was ended by {signal.Signals(-code).name}")
        return errors.DecoderCrashError(f"it ended with status {code}" if code is not None else "it did not answer")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return environment | {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OPENBLAS_NUM_THREADS": "1",
        # Freed memory goes back to the system: glibc would keep blocks of up to 32 MB otherwise.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "262144",
    }


def _receive(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionResetError("The process ended.")
        view = view[count:]
    return data


def _receive_message(connection: socket.socket) -> dict[str, Any]:
    [size] = struct.unpack(">I", _receive(connection, 4))
    message = json.loads(_receive(connection, size))
    if not isinstance(message, dict):
        raise TypeError("The answer is not an object.")
    return message


def _error_of(answer: dict[str, Any]) -> errors.Fc7Error:
    kind = getattr(errors, str(answer["error"]), None)
    if isinstance(kind, type) and issubclass(kind, errors.Fc7Error):
        return kind(*answer["values"])
    return errors.DecoderCrashError(f"{answer['error']}: {answer['values']}")


def _answer(data: bytes, limits: DecodeLimits) -> tuple[dict[str, Any], bytes]:
    """Decode an image; return the answer and the pixels, which are empty if it could not be decoded."""
    try:
        image = prepare_within(limits, data)
    except errors.Fc7Error as error:
        return {"error": type(error).__name__, "values": list(error.args)}, b""
    except Exception as error:
        return {"error": type(error).__name__, "values": [str(error)]}, b""
    values = {each.name: getattr(image, each.name) for each in fields(image) if each.name != "pixels"}
    return values, image.pixels.tobytes()


def _limit_resources(limits: DecodeLimits, size: int, base: int | None) -> None:
    """Limit the CPU time and memory of the next image. base: bytes of data that the process uses without it."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (ceil(used + limits.seconds) + 1, resource.RLIM_INFINITY))
    if base is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (base + limits.bytes + 2 * size + _MARGIN, resource.RLIM_INFINITY))


def _data_bytes() -> int | None:
    """Return the size of this process's private writable memory, in bytes; None if unknown."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmData:")))
    return None


def main(arguments: list[str]) -> None:
    """Run a worker. arguments: the socket's file descriptor, and the limits as JSON."""
    connection = socket.socket(fileno=int(arguments[0]))
    pixels, size, seconds, niceness = json.loads(arguments[1])
    limits = DecodeLimits(pixels, size, seconds)
    os.nice(niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from PIL import AvifImagePlugin  # noqa: PLC0415 - it is needed only here, to change a default

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    base = _data_bytes()
    connection.sendall(b"\n")  # ready
    with suppress(ConnectionError):
        while True:
            [length] = struct.unpack(">Q", _receive(connection, 8))
            _limit_resources(limits, length, base)
            answer, prepared = _answer(bytes(_receive(connection, length)), limits)
            message = json.dumps(answer).encode()
            connection.sendall(struct.pack(">I", len(message)) + message + prepared)


if __name__ == "__main__":
    main(sys.argv[1:])
