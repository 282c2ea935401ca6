"""A real uvicorn server for tests: in a thread of this process, or as the command `fc7 serve` in a process of its own.

Both take a free port of loopback and are ready to answer when they are handed out. Settings are given, never inherited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from model_store.artifact import Artifact
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from service.app import create_app
from service.server import bind, run
from service.settings import PREFIX, Settings
from service.state import State

PATIENCE_S = 20.0


@dataclass(frozen=True)
class ThreadServer:
    """A server in this process; `state` is the application's own. `exit_codes` gets the code when it ends."""

    url: str
    port: int
    state: State
    exit_codes: list[int]
    client: httpx.Client


@contextmanager
def thread_server(
    home: Path, *, make_runner: Callable[[Artifact, RunnerOptions], Runner] = Runner, **settings: Any
) -> Iterator[ThreadServer]:
    """Serve `home` from a thread; leaving drains and stops it."""
    chosen = Settings(**{"home": home, "port": 0, "log_level": "error"} | settings)
    app = create_app(chosen, make_runner=make_runner)
    state: State = app.state.fc7
    listener = bind(chosen)
    port = listener.getsockname()[1]
    exit_codes: list[int] = []
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            exit_codes.append(run(app, chosen, listener))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve, name="test-server")
    thread.start()
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        try:
            wait_until(lambda: bool(failures) or _answers(url))
            if failures:
                raise failures[0]
            yield ThreadServer(url, port, state, exit_codes, client)
        finally:
            state.drain()
            thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the server did not stop"


@dataclass(frozen=True)
class ProcessServer:
    """The command `fc7 serve` in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def peak_memory(self) -> int:
        """Return the most memory that the process ever had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def lines(self) -> list[dict[str, Any]]:
        """Return what it logged; a line that is being written is not there yet."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


@contextmanager
def process_server(home: Path, *, before: str = "", **variables: str) -> Iterator[ProcessServer]:
    """Run `fc7 serve` on `home` with these FC7_ variables, after the Python code `before`; leaving kills it."""
    log = home.parent / f"{home.name}-serve-{time.monotonic_ns()}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {"FC7_HOME": str(home), "FC7_PORT": "0", "PYTHONUNBUFFERED": "1"} | variables
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom service.cli import main; main()", "serve"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        urls: list[str] = []

        def listening() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"fc7 serve ended with {process.returncode}:\n{log.read_text()}")
            complete = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            found = [json.loads(line) for line in complete if '"listening"' in line]
            urls.extend(line["url"] for line in found)
            return bool(urls)

        wait_until(listening)
        wait_until(lambda: _answers(urls[0]))
        yield ProcessServer(urls[0], process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true; fail when that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
