"""Images that are expensive to decode, over real HTTP: refused in words, and without an effect on other requests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support import costly_images as costly
from tests.support.pictures import encoded, jpeg, scene
from tests.support.server import ThreadServer, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("limits") / "home"
    publish_tiny_model(home)
    with thread_server(home, decode_s=1.0, max_decode_mb=60, deadline_s=6.0) as server:
        yield server


def classify(server: ThreadServer, data: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.post(f"{server.url}/v1/classify", content=data, headers=headers, timeout=20)


def metric(server: ThreadServer, line: str) -> float:
    text = server.client.get("/metrics").text
    return next((float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line)), 0.0)


def test_a_refusal_names_the_limit_and_is_counted(server: ThreadServer) -> None:
    before = metric(server, 'fc7_decode_failures_total{reason="refused"}')
    slow = classify(server, costly.jpeg_with_scans(4000, 4000, 200))
    assert slow.status_code == 422
    assert slow.json()["type"] == "urn:fc7:problem:decode-time"
    assert slow.json()["limit"] == 1
    assert "FC7_DECODE_S" in slow.json()["detail"]
    large = classify(server, costly.png(5000, 5000))
    assert large.status_code == 422
    assert large.json()["type"] == "urn:fc7:problem:decode-memory"
    assert "FC7_MAX_DECODE_MB" in large.json()["detail"]
    tile = classify(server, costly.tiff(100, 100, tile=(8192, 8192)))
    assert tile.status_code == 422
    assert tile.json()["type"] == "urn:fc7:problem:image-too-large"
    assert metric(server, 'fc7_decode_failures_total{reason="refused"}') == before + 3


def test_text_that_looks_like_svg_is_refused_immediately(server: ThreadServer) -> None:
    started = time.monotonic()
    assert classify(server, b"<!---->" * 40 + b"x").status_code == 400
    assert time.monotonic() - started < 5  # an exponential search would take years


def test_ordinary_requests_do_not_wait_for_expensive_ones(server: ThreadServer) -> None:
    assert classify(server, jpeg()).status_code == 200
    expensive = costly.rle_bmp(2_000_000, 1)
    with ThreadPoolExecutor(12) as clients:
        hostile = [clients.submit(classify, server, expensive) for _ in range(12)]
        wait_until(lambda: server.state.decoder.running > 0)
        times = []
        for number in range(10):
            started = time.monotonic()
            assert classify(server, jpeg(number)).status_code == 200
            times.append(time.monotonic() - started)
        statuses = {each.result().status_code for each in hostile}
    assert sorted(times)[5] < 1
    assert statuses <= {200, 422, 503, 504}
    assert server.client.get("/readyz").status_code == 200


def test_a_killed_worker_is_answered_in_words(server: ThreadServer) -> None:
    assert classify(server, encoded(scene(), "AVIF")).status_code == 200
    [pid] = server.state.decoder.worker_pids
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    answers = [classify(server, costly.rle_bmp(2_000_000, 1))]
    assert answers[0].status_code == 422
    assert answers[0].json()["type"] == "urn:fc7:problem:decoder-crash"
    assert "SIGKILL" in answers[0].json()["detail"]
    assert classify(server, encoded(scene(), "AVIF")).status_code == 200


def test_a_request_that_ends_while_it_waits_is_never_decoded(home: Path) -> None:
    with thread_server(home, deadline_s=1.0, decode_s=3.0, decode_threads=2) as server:
        expensive = costly.rle_bmp(1_000_000, 1)
        with ThreadPoolExecutor(8) as clients:
            answers = [each.result() for each in [clients.submit(classify, server, expensive) for _ in range(8)]]
        assert {each.status_code for each in answers} <= {200, 503, 504}
        wait_until(lambda: server.state.decoder.running == 0)
        assert server.state.decoder.waiting == 0
        assert server.state.serving().batcher.admitted == 0


def test_not_ready_while_no_decode_thread_is_free(home: Path) -> None:
    with thread_server(home, deadline_s=0.3, decode_threads=2) as server:
        assert server.client.get("/readyz").status_code == 200
        gate = threading.Event()
        try:
            for _ in range(2):
                server.state.decode_pool.submit(gate.wait)
            wait_until(lambda: server.client.get("/readyz").status_code == 503)
            assert "2 decode threads have been busy" in server.client.get("/readyz").json()["detail"]
        finally:
            gate.set()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
