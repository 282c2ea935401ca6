"""Signals end a real `fc7 serve` within its time limit, whatever a thread, a request or another process waits for."""

from __future__ import annotations

import io
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.process import TIMED_OUT
from tests.support import pictures
from tests.support.server import ProcessServer, environment_of, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

_LIMIT_S = 1.5
_MARGIN_S = 1.0  # for a busy machine
_ASLEEP = "the patched function was called"
_SLEEP = f"import time\ndef sleep(*_, **__):\n    print({_ASLEEP!r})\n    time.sleep(60)\n"
_JPEG = {"Content-Type": "image/jpeg"}

Start = Callable[[ProcessServer, ExitStack], None]


def in_background(method: str, path: str, body: bytes = b"", headers: dict[str, str] = _JPEG) -> Start:
    """Send a request whose response is not waited for; return once the patched function sleeps."""

    def start(server: ProcessServer, _stack: ExitStack) -> None:
        def send() -> None:
            with suppress(httpx.TransportError):
                httpx.request(method, server.url + path, content=body, headers=headers, timeout=30)

        threading.Thread(target=send).start()
        wait_until(lambda: _ASLEEP in server.log.read_text())

    return start


def zip_of_one() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", pictures.jpeg())
    return file.getvalue()


def send_head(server: ProcessServer, stack: ExitStack, path: str, kind: str, length: int) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\nab"
    connection.sendall(head.encode())
    return connection


def slow_uploads(server: ProcessServer, stack: ExitStack) -> None:
    for _ in range(100):
        send_head(server, stack, "/v1/jobs", "application/zip", 1000)
    time.sleep(0.5)


def idle_and_half_sent(server: ProcessServer, stack: ExitStack) -> None:
    for _ in range(20):
        idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)).sendall(b"GET /li")
    time.sleep(0.2)


def reader_stops(server: ProcessServer, stack: ExitStack) -> None:
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
    time.sleep(0.5)


def locked_catalog(server: ProcessServer, stack: ExitStack) -> None:
    catalog = sqlite3.connect(server.home / "index" / "catalog.db", isolation_level=None)
    stack.callback(catalog.close)
    catalog.execute("BEGIN IMMEDIATE")
    in_background("PUT", "/v1/images/a", pictures.jpeg())(server, stack)


def patch(target: str) -> str:
    """Return Python code that makes `module.name` sleep for a minute."""
    module, _, name = target.rpartition(".")
    return f"{_SLEEP}import {module}\n{module}.{name} = sleep\n"


_COMMIT = f"""
from index.catalog.catalog import Catalog
add = Catalog.add
Catalog.add = lambda *arguments: (print({_ASLEEP!r}), add(*arguments))[1]
"""
_FAST: dict[str, tuple[str, Start, int | None]] = {
    "idle connections": ("", idle_and_half_sent, 0),
    "100 slow uploads": ("", slow_uploads, None),
    "catalog locked by another process": (_COMMIT, locked_catalog, TIMED_OUT),
    "decoding hangs": (
        patch("model_store.decoder.limits.inspect_and_prepare"),
        in_background("POST", "/v1/classify", pictures.jpeg()),
        TIMED_OUT,
    ),
}
_SLOW: dict[str, tuple[str, Start, int | None]] = {
    "a client does not read": ("", reader_stops, None),
    "slow snapshot": (
        patch("index.local.index.take_snapshot"),
        in_background("POST", "/v1/index/snapshots"),
        TIMED_OUT,
    ),
    "slow search for duplicates": (
        patch("index.local.index.near_groups"),
        in_background("GET", "/v1/index/duplicates?threshold=1"),
        TIMED_OUT,
    ),
    "a job in the middle of a batch": (
        patch("service.indexing.archive_import.add_files"),
        in_background("POST", "/v1/jobs", zip_of_one(), {"Content-Type": "application/zip"}),
        TIMED_OUT,
    ),
    "an activation loads": (
        f"{_SLEEP}import service.inference.loader as loader\nload = loader.ModelLoader.load\n"
        "loader.ModelLoader.load = lambda self, artifact, check_memory: "
        "(sleep() if artifact.version == 2 else load(self, artifact, check_memory=check_memory))\n",
        in_background("POST", "/v1/models/tiny/2/activate"),
        TIMED_OUT,
    ),
}


def check_situation(home: Path, before: str, start: Start, code: int | None) -> None:
    variables = {"FC7_SHUTDOWN_TIMEOUT_S": str(_LIMIT_S), "FC7_MAX_UPLOADS": "100"}
    with process_server(home, before=before, **variables) as server, ExitStack() as stack:
        start(server, stack)
        sent = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        found = server.process.wait(20)
        assert found == code or (code is None and found in (0, TIMED_OUT))
        assert time.monotonic() - sent < _LIMIT_S + _MARGIN_S
        assert ("shutdown timed out" in server.log.read_text()) == (found == TIMED_OUT)


@pytest.mark.parametrize("situation", _FAST)
def test_sigterm_ends_the_process_within_the_limit(home: Path, situation: str) -> None:
    check_situation(home, *_FAST[situation])


@pytest.mark.slow
@pytest.mark.parametrize("situation", _SLOW)
def test_sigterm_ends_the_process_within_the_limit_in_more_situations(home: Path, situation: str) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    check_situation(home, *_SLOW[situation])


@contextmanager
def silent_collector() -> Iterator[str]:
    """Yield the address of a trace collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_trace_collector_that_does_not_answer_does_not_delay_the_shutdown(home: Path) -> None:
    with (
        silent_collector() as endpoint,
        process_server(home, FC7_SHUTDOWN_TIMEOUT_S="5", FC7_OTLP_ENDPOINT=endpoint) as server,
    ):
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        sent = time.monotonic()
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(20) == 0
        assert time.monotonic() - sent < 2


def test_a_second_signal_ends_the_process_immediately(home: Path) -> None:
    before = patch("model_store.decoder.limits.inspect_and_prepare")
    with process_server(home, before=before) as server, ExitStack() as stack:
        in_background("POST", "/v1/classify", pictures.jpeg())(server, stack)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log.read_text())
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(_MARGIN_S) == 128 + signal.SIGINT


def test_signals_end_a_process_that_is_still_loading_the_model(home: Path, tmp_path: Path) -> None:
    before = patch("model_store.runtime.runner.Runner").replace("runner.Runner =", "runner.Runner.__init__ =")
    code = f"{before}\nfrom service.cli import main\nmain()"
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen([sys.executable, "-c", code, "serve"], env=environment_of(home), stdout=output) as process,
    ):
        wait_until(lambda: _ASLEEP in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(1 + _MARGIN_S) == 0


def test_sigterm_during_a_log_line_does_not_deadlock(home: Path) -> None:
    before = """
import signal
from service.observability import background_stream
write = background_stream.BackgroundStream.write
def interrupted(self, text):
    if '"path": "/livez"' in text:
        signal.raise_signal(signal.SIGTERM)
    return write(self, text)
background_stream.BackgroundStream.write = interrupted
"""
    with process_server(home, before=before, FC7_LOG_LEVEL="debug") as server:
        assert server.process.wait(15) == 0
        assert '"event": "draining"' in server.log.read_text()


def test_a_request_that_the_shutdown_cuts_off_is_answered_with_503(home: Path) -> None:
    with process_server(home, FC7_SHUTDOWN_TIMEOUT_S="1") as server, ExitStack() as stack:
        connection = send_head(server, stack, "/v1/classify", "image/jpeg", 1000)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"shutting down" in answer
        assert server.process.wait(15) == 0


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_limit(home: Path) -> None:
    before = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))\n"
    with process_server(home, before=before) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        assert next(line.split()[3:5] for line in limits if line.startswith("Max open files")) == ["200", "200"]


def test_with_too_few_open_files_requests_get_503_and_the_server_recovers(home: Path) -> None:
    before = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    with process_server(home, before=before) as server, ExitStack() as stack:
        assert httpx.put(f"{server.url}/v1/images/a", content=pictures.jpeg(), headers=_JPEG).status_code == 201
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5)) for _ in range(20)]
        last = held[-1].recv(65536)
        assert last.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 2" in last.lower()
        assert b"no more connections" in last
        for connection in held:
            connection.close()
        wait_until(lambda: _ok(f"{server.url}/v1/images/a/thumbnail"))
        assert "Traceback" not in server.log.read_text()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0


def _ok(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_the_limit_of_a_server_without_signals_is_kept_for_answering(home: Path) -> None:
    with thread_server(home, shutdown_timeout_s=0.5) as server, ExitStack() as stack:
        stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        started = time.monotonic()
        server.state.drain()
        wait_until(lambda: server.exit_codes == [0])
        assert time.monotonic() - started < 0.5 + _MARGIN_S


def test_onnx_runtime_keeps_no_device_id_for_telemetry(home: Path, tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    before = "import os\nos.environ.pop('ORT_DISABLE_TELEMETRY', None)"
    with process_server(home, before=before, HOME=str(user), XDG_CACHE_HOME="", FC7_ENGINE="onnxruntime") as server:
        answer = httpx.post(f"{server.url}/v1/classify", content=pictures.jpeg(), headers=_JPEG)
        assert answer.status_code == 200
    assert list(user.rglob("*onnxruntime*")) == []
