"""A process that has everything imported and forks a server whenever it is told to: a start in a fraction of a second.

Each line on standard input is a home; the answer is a line with the new server's process id, then the server's log.
An empty line is answered by "gone", behind which there is nothing of the servers before.
What is forked is what `fc7 serve` runs; it dies with this process, which ends with its input.
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
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
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
