"""Start the processes of a distributed run as torchrun does, but without its agent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def start_together(world: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start `python arguments` `world` times, each with its own rank. Warnings are errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def run_together(world: int, arguments: Sequence[str], code: int = 0) -> list[str]:
    """Run the processes to completion, and return their outputs. Fails if an exit code is not `code`."""
    started = start_together(world, arguments)
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [code] * world, "\n".join(outputs)
    return outputs
