"""The load generator with real sockets, and the inputs of the serving benchmark."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.photographs import LARGE, enlarge, read_photographs
from benchmarks.serving.__main__ import main
from benchmarks.serving.load import Plan, request, run_load
from tests.support import pictures
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


@contextmanager
def serving(response: bytes, delay_s: float) -> Iterator[int]:
    """Serve `response` to each request on each connection after a fixed delay."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the generator resets its connections at the end
            while connection.recv(65536):
                time.sleep(delay_s)
                connection.sendall(response)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def test_closed_load_has_one_open_request_per_client() -> None:
    with serving(OK, 0.05) as port:
        result = run_load(Plan(port, [request("/", b"x")], clients=4, seconds=1.0, warm_up_s=0.2))
    assert result.errors == 0
    assert 40 <= result.answered <= 80  # 4 clients with 20 per second each; fewer on a busy machine
    assert 50 <= result.percentile(50) < 100
    assert 0 < result.processor_s < 0.5


def test_open_load_is_not_slowed_down_and_measures_latency_from_the_due_time() -> None:
    with serving(OK, 0.3) as port:
        result = run_load(Plan(port, [request("/", b"x")], clients=5, seconds=1.5, rate=50.0))
    assert result.unsent > 30  # 5 connections can send 17 of 50 per second
    assert result.percentile(50) >= 300
    assert result.broken == 0


def test_errors_and_their_retry_after_are_counted() -> None:
    with serving(BUSY, 0.0) as port:
        result = run_load(Plan(port, [request("/", b"x")], clients=2, seconds=0.5))
    assert set(result.latencies) == {503}
    assert result.retry_after == {"7": len(result.latencies[503])}
    assert result.rate == 0


def test_load_generator_works_with_the_service(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path / "home")
    with thread_server(tmp_path / "home") as server:
        requests = [request("/v1/classify", pictures.jpeg(seed)) for seed in range(5)]
        result = run_load(Plan(server.port, [*requests, request("/v1/classify", b"text")], clients=3, seconds=1.0))
    assert set(result.latencies) == {200, 400}
    assert len(result.latencies[200]) > 2 * len(result.latencies[400])
    assert result.broken == 0


def test_photographs_are_read_from_a_folder_or_tar_and_enlarged(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.jpg", "a.jpg", "note.txt"):
        (folder / name).write_bytes(pictures.jpeg(ord(name[0])))
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder, "photographs")
    wanted = [pictures.jpeg(ord("a")), pictures.jpeg(ord("b"))]
    assert read_photographs(folder, 10) == read_photographs(tmp_path / "all.tar", 10) == wanted
    assert read_photographs(folder, 1) == wanted[:1]
    assert Image.open(io.BytesIO(enlarge(wanted[0]))).size == LARGE
    with pytest.raises(SystemExit, match=r"note\.txt is not a folder or tar"):
        read_photographs(folder / "note.txt", 1)


def test_the_error_without_an_active_version_explains_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="fc7 export"):
        main([str(tmp_path), "--home", str(tmp_path)])
