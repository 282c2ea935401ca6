"""The load generator against real sockets: it counts what happened, or the benchmark's figures mean nothing."""

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

from benchmarks.load import Plan, request, run_load
from benchmarks.photographs import LARGE, enlarge, read_photographs
from benchmarks.serving import main
from tests.support import pictures
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


@contextmanager
def answering(answer: bytes, delay_s: float) -> Iterator[int]:
    """Answer each request on each connection after a fixed time."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # at the end of a load its connections are reset
            while connection.recv(65536):
                time.sleep(delay_s)
                connection.sendall(answer)

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


def test_a_closed_load_has_as_many_requests_under_way_as_clients() -> None:
    with answering(OK, 0.05) as port:
        seen = run_load(Plan(port, [request("/", b"x")], clients=4, seconds=1.0, warm_up_s=0.2))
    assert seen.errors == 0
    assert 40 <= seen.answered <= 80  # 4 clients, 20 a second each, and a busy machine takes some
    assert 50 <= seen.percentile(50) < 100
    assert 0 < seen.processor_s < 0.5


def test_an_open_load_is_not_slowed_by_a_slow_server_and_counts_from_when_a_request_was_due() -> None:
    with answering(OK, 0.3) as port:
        seen = run_load(Plan(port, [request("/", b"x")], clients=5, seconds=1.5, rate=50.0))
    assert seen.unsent > 30  # 5 connections carry 17 a second of 50
    assert seen.percentile(50) >= 300
    assert seen.broken == 0


def test_refusals_their_retry_after_and_closed_connections_are_told_apart() -> None:
    with answering(BUSY, 0.0) as port:
        seen = run_load(Plan(port, [request("/", b"x")], clients=2, seconds=0.5))
    assert set(seen.latencies) == {503}
    assert seen.retry_after == {"7": len(seen.latencies[503])}
    assert seen.rate == 0


def test_it_loads_the_service(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path / "home")
    with thread_server(tmp_path / "home") as server:
        requests = [request("/v1/classify", pictures.jpeg(seed)) for seed in range(5)]
        seen = run_load(Plan(server.port, [*requests, request("/v1/classify", b"text")], clients=3, seconds=1.0))
    assert set(seen.latencies) == {200, 400}
    assert len(seen.latencies[200]) > 2 * len(seen.latencies[400])
    assert seen.broken == 0


def test_photographs_come_from_a_folder_or_a_tar_and_are_enlarged(tmp_path: Path) -> None:
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
    with pytest.raises(SystemExit, match=r"note\.txt is no folder or tar"):
        read_photographs(folder / "note.txt", 1)


def test_without_an_active_version_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="fc7 export"):
        main([str(tmp_path), "--home", str(tmp_path)])
