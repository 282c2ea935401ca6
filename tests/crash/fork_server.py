"""A process that imports everything once, and then forks servers, so that each starts in a fraction of a second.

It reads lines from standard input. For a home folder it forks a server, prints the server's process id and copies
the server's log to standard output. For an empty line it prints "gone", after all output of earlier servers.
A server runs the same code as `fc7 serve`. It dies with this process, which ends when its input ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path

from service.app import create_app
from service.server import bind, serve_until_stopped
from service.settings import Settings

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork servers until the input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the kernel reaps them
    for line in sys.stdin:
        if not line.strip():
            print("gone", flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _serve(Path(line.strip()))
        print(f"pid {pid}", flush=True)


def _serve(home: Path) -> None:
    settings = Settings(home=home, port=0, threads=1, decode_threads=2, deadline_s=60)
    try:
        code = asyncio.run(serve_until_stopped(create_app(settings), settings, bind(settings)))
    except BaseException as error:
        print(f"failed: {error}", flush=True)
        code = 1
    os._exit(code)


if __name__ == "__main__":
    main()
