"""The measured servers, each with its own processes on the loopback interface: fc7, LitServe, and an empty endpoint.

Guarantees: a server is ready when it is yielded, and has ended after the block. Its memory is the proportional share
(PSS) of all its processes, its CPU time the sum of theirs. A suspended server uses no CPU.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_START_TIMEOUT_S = 90.0
_SETTLE_S = 0.5
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready. start_s: seconds from process start to ready."""

    name: str
    port: int
    path: str
    process: subprocess.Popen[bytes]
    start_s: float

    def memory(self) -> int:
        """Return the memory of its processes in bytes; pages that they share are counted once."""
        return sum(_pss(process) for process in _tree(self.process.pid))

    def suspend(self) -> None:
        """Suspend its processes."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Resume its processes for the block."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            time.sleep(_SETTLE_S)  # otherwise the suspension would count as time of the last requests
            self.suspend()

    def processor_s(self) -> float:
        """Return the CPU time of its running processes."""
        ticks = 0
        for process in _tree(self.process.pid):
            with suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def fc7_server(home: Path, log: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Serve the active version of `home` with `fc7 serve`. environment: further settings."""
    settings = {"FC7_HOME": str(home), "FC7_PORT": str(port := _free_port()), "FC7_LOG_LEVEL": "info", **environment}
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve"]
    with _running("fc7", command, log, settings, port=port, ready="/readyz", path="/v1/classify") as server:
        yield server


@contextmanager
def litserve_server(
    home: Path, log: Path, *, threads: int, engine: str = "onnxruntime", graph: Path | None = None
) -> Iterator[Server]:
    """Serve the active version of `home` with LitServe. The parameters are those of `litserve_app`."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.serving.litserve_app", str(home), str(port), str(threads)]
    command += ["--engine", engine] + ([] if graph is None else ["--graph", str(graph)])
    with _running("LitServe", command, log, {}, port=port, ready="/health", path="/predict") as server:
        yield server


@contextmanager
def empty_server(log: Path) -> Iterator[Server]:
    """Serve an endpoint that reads an image and does nothing with it."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.serving.empty_app", str(port)]
    with _running("the empty endpoint", command, log, {}, port=port, ready="/ready", path="/empty") as server:
        yield server


@contextmanager
def _running(
    name: str, command: list[str], log: Path, settings: Mapping[str, str], *, port: int, ready: str, path: str
) -> Iterator[Server]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FC7_")}
    with log.open("ab") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=inherited | dict(settings), cwd=_ROOT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while not _is_ready(port, ready):
            if process.poll() is not None or time.perf_counter() - started > _START_TIMEOUT_S:
                raise SystemExit(f"{name} did not become ready. Its output:\n{log.read_text()[-4000:]}")
            time.sleep(0.01)
        yield Server(name, port, path, process, time.perf_counter() - started)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)  # a suspended process handles no signal
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tree(root: int) -> list[int]:
    """Return the process and all of its descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _pss(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
