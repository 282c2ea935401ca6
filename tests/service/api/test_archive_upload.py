"""Uploads of archives are limited in number, time and disk space, and leave nothing behind."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import ThreadServer, thread_server, wait_until

_ZIP = {"Content-Type": "application/zip"}


def start_upload(server: ThreadServer) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/zip\r\nContent-Length: 1000\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def folders(home: Path) -> list[Path]:
    return list((home / "jobs").iterdir()) if (home / "jobs").exists() else []


def test_a_trickling_upload_gets_408_and_leaves_no_files(home: Path) -> None:
    with thread_server(home, upload_timeout_s=0.5) as server, start_upload(server) as connection:
        started = time.monotonic()
        connection.settimeout(0.1)
        answer = b""
        while not answer:
            connection.sendall(b"x")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() - started < 5
        assert answer.startswith(b"HTTP/1.1 408")
        wait_until(lambda: folders(home) == [])


def test_more_uploads_than_the_limit_get_503_and_an_ended_one_makes_room(home: Path) -> None:
    with thread_server(home, max_uploads=2) as server:
        with start_upload(server), start_upload(server):
            wait_until(lambda: len(folders(home)) == 2)
            refused = server.client.post("/v1/jobs", content=b"x", headers=_ZIP)
            assert (refused.status_code, refused.json()["limit"]) == (503, 2)
            assert int(refused.headers["retry-after"]) >= 1
        wait_until(lambda: folders(home) == [])
        assert server.client.post("/v1/jobs", content=b"x", headers=_ZIP).status_code == 422


def test_an_upload_that_does_not_fit_on_the_disk_gets_507(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.archive_upload._FREE_BYTES", 1 << 60)
    with thread_server(home) as server:
        refused = server.client.post("/v1/jobs", content=b"x", headers=_ZIP)
        assert (refused.status_code, refused.json()["type"]) == (507, "urn:fc7:problem:storage")
        assert "free" in refused.json()["detail"]


def test_other_slow_bodies_get_408(home: Path) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x"
            time.sleep(0.05)

    with thread_server(home, upload_timeout_s=0.3) as server:
        for path in ("/v1/classify", "/v1/images", "/v2/models/tiny/infer"):
            answer = httpx.post(server.url + path, content=body(), headers={"Content-Type": "image/jpeg"})
            assert answer.status_code == 408
