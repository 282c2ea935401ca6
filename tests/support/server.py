"""Real servers for tests: uvicorn in a thread of this process, or `fc7 serve` in a separate process.

Both listen on a free loopback port and are ready when the context starts. Neither reads FC7_ variables of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from model_store.runtime.runner import Runner
from service.app import create_app
from service.inference.loader import MakeRunner
from service.server import bind, run
from service.settings import PREFIX, Settings
from service.state import State

TIMEOUT_S = 60.0  # a busy machine takes long to start a process


@dataclass(frozen=True)
class ThreadServer:
    """A server in this process. When it stops, its exit code is added to `exit_codes`."""

    url: str
    port: int
    app: FastAPI
    exit_codes: list[int]
    client: httpx.Client

    @property
    def state(self) -> State:
        """The state of the application."""
        state: State = self.app.state.fc7
        return state


@contextmanager
def thread_server(
    home: Path, *, port: int = 0, make_runner: MakeRunner = Runner, **settings: Any
) -> Iterator[ThreadServer]:
    """Serve `home` from a thread. On exit, the server is drained and stopped."""
    all_settings = Settings(home=home, port=port, log_level="error", **settings)
    app = create_app(all_settings, make_runner=make_runner)
    listener = bind(all_settings)
    port = listener.getsockname()[1]
    exit_codes: list[int] = []
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            exit_codes.append(run(app, all_settings, listener))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve, name="test-server")
    thread.start()
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        try:
            wait_until(lambda: bool(failures) or _answers(url))
            if failures:
                raise failures[0]
            yield ThreadServer(url, port, app, exit_codes, client)
        finally:
            app.state.fc7.drain()
            thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "the server did not stop"


@dataclass(frozen=True)
class ProcessServer:
    """`fc7 serve` in a separate process."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    home: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def peak_memory(self) -> int:
        """Return the peak memory of the process, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def lines(self) -> list[dict[str, Any]]:
        """Return the complete JSON lines of the log."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment of `fc7 serve` on `home`, on a free port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return environment | {"FC7_HOME": str(home), "FC7_PORT": "0", "PYTHONUNBUFFERED": "1"}


@contextmanager
def process_server(
    home: Path, *, before: str = "", command: Sequence[str] = (), **variables: str
) -> Iterator[ProcessServer]:
    """Run `fc7 serve` on `home` with these environment variables, after the Python code `before`. On exit, kill it.

    command: how to run `fc7`, if not from this checkout.
    """
    log = home.parent / f"{home.name}-serve-{time.monotonic_ns()}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*(command or (sys.executable, "-c", f"{before}\nfrom service.cli import main; main()")), "serve"],
            env=environment_of(home) | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        urls: list[str] = []

        def listening() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"fc7 serve exited with {process.returncode}:\n{log.read_text()}")
            complete = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            found = [json.loads(line) for line in complete if '"listening"' in line]
            urls.extend(line["url"] for line in found)
            return bool(urls)

        wait_until(listening)
        wait_until(lambda: _answers(urls[0]))
        yield ProcessServer(urls[0], process, log, home)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true; fail after a timeout."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
