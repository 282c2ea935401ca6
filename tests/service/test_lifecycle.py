"""Start, readiness, overload, deadline, shutdown and crash of the service, over real HTTP."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.errors import IndexLockedError
from model_store.errors import ArtifactCorruptError, DeviceUnavailableError
from service.errors import SettingError
from tests.support import pictures
from tests.support.pausable_model import PausableRunner
from tests.support.server import ProcessServer, ThreadServer, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}


@contextmanager
def pausable_server(home: Path, **settings: Any) -> Iterator[tuple[ThreadServer, PausableRunner]]:
    with thread_server(home, make_runner=PausableRunner, **settings) as server:
        runner = server.state.serving().runner
        assert isinstance(runner, PausableRunner)
        try:
            yield server, runner
        finally:
            runner.resume()


def classify(url: str, seed: int = 0) -> httpx.Response:
    return httpx.post(f"{url}/v1/classify", content=pictures.jpeg(seed), headers=JPEG, timeout=30)


def test_the_service_starts_without_a_model_and_explains_how_to_get_one(tmp_path: Path) -> None:
    with thread_server(tmp_path) as server:
        assert server.client.get("/livez").status_code == 200
        ready = server.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.headers["retry-after"]
        assert any("fc7 train" in reason and "fc7 export" in reason for reason in ready.json()["reasons"])
        answer = classify(server.url)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:fc7:problem:not-ready")
        assert "fc7 train" in answer.json()["detail"]
        assert server.client.get("/v1/images").status_code == 503
        assert server.client.get("/v1/models").json() == {"models": []}
        assert server.client.get("/").status_code == 200
        assert "fc7_ready 0.0" in server.client.get("/metrics").text


def test_readiness_names_a_published_but_inactive_model(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, activate=False)
    with thread_server(tmp_path) as server:
        assert "fc7 models activate tiny:1" in server.client.get("/readyz").json()["detail"]


def test_an_index_of_another_model_is_migrated_after_the_start(home: Path) -> None:
    with thread_server(home) as server:
        assert server.client.put("/v1/images/a", content=pictures.jpeg(), headers=JPEG).status_code == 201
    publish_tiny_model(home, seed=1)
    with thread_server(home) as server:
        assert classify(server.url).json()["model"] == {"name": "tiny", "version": 2}
        wait_until(lambda: server.client.get("/v1/index").json()["model"] == "tiny:2")
        found = server.client.post("/v1/search", content=pictures.jpeg(), headers=JPEG).json()
        assert found["model"] == {"name": "tiny", "version": 2}
        assert [neighbour["key"] for neighbour in found["results"][0]["neighbours"]] == ["a"]
        assert server.client.get("/readyz").json()["notes"] == []
        models = server.client.get("/v1/models").json()["models"]
        assert [(model["version"], model["active"], model["serving"]) for model in models] == [
            (1, False, False),
            (2, True, True),
        ]


def test_corrupt_weights_a_missing_device_and_a_second_server_prevent_the_start(home: Path) -> None:
    with thread_server(home), pytest.raises(IndexLockedError), thread_server(home):
        pass
    with pytest.raises(DeviceUnavailableError, match="cuda"), thread_server(home, device="cuda"):
        pass
    weights = home / "models" / "tiny" / "1" / "weights.bin"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactCorruptError, match=r"weights\.bin"), thread_server(home):
        pass


def test_a_port_in_use_is_reported(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"FC7_PORT={port}"), thread_server(home, port=port):
            pass


def test_a_full_queue_returns_503_with_retry_after_and_empties_again(home: Path) -> None:
    with pausable_server(home, queue_size=3, max_images=3) as (server, runner), ThreadPoolExecutor(3) as clients:
        runner.pause()
        waiting = [clients.submit(classify, server.url, seed) for seed in range(3)]
        batcher = server.state.serving().batcher
        wait_until(lambda: batcher.admitted == 3)
        refused = classify(server.url)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:fc7:problem:queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["limit"] == 3
        with httpx.Client(base_url=server.url) as kept:  # a refused request leaves its connection open
            for path in ("classify", "search", "classify"):
                again = kept.post(f"/v1/{path}", content=pictures.jpeg(), headers=JPEG)
                assert (again.status_code, again.headers.get("connection")) == (503, None)
                assert again.headers["x-request-id"]
        assert server.client.get("/readyz").status_code == 200
        runner.resume()
        assert [future.result().status_code for future in waiting] == [200, 200, 200]
        assert classify(server.url).status_code == 200
        assert 'fc7_refusals_total{reason="queue-full"} 4.0' in server.client.get("/metrics").text


def test_an_exceeded_deadline_returns_504_and_releases_the_slot(home: Path) -> None:
    with pausable_server(home, deadline_s=0.3) as (server, runner):
        runner.pause()
        late = classify(server.url)
        assert (late.status_code, late.json()["type"], late.json()["limit"]) == (504, "urn:fc7:problem:deadline", 0.3)
        wait_until(lambda: server.state.serving().batcher.admitted == 0)
        runner.resume()
        wait_until(lambda: classify(server.url).status_code == 200)  # one may miss such a short deadline


def test_a_client_that_disconnects_is_removed_from_the_queue(home: Path) -> None:
    with pausable_server(home) as (server, runner):
        batcher = server.state.serving().batcher
        runner.pause()
        body = pictures.jpeg()
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode() + body)
                wait_until(lambda: batcher.admitted == 1)
            wait_until(lambda: batcher.admitted == 0)
        runner.resume()
        assert classify(server.url).status_code == 200
        wait_until(lambda: server.state.in_flight == 0)
        assert server.app.state.body_budget.held == 0
        assert 'fc7_refusals_total{reason="client-gone"} 2.0' in server.client.get("/metrics").text


def test_a_slow_body_returns_408(home: Path) -> None:
    with (
        thread_server(home, upload_timeout_s=0.3) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection,
    ):
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: image/jpeg\r\nContent-Length: 100\r\n\r\nhalf"
        )
        assert b" 408 " in connection.recv(65536).splitlines()[0]


def test_a_dead_model_fails_waiting_requests_and_the_server_exits_with_code_1(home: Path) -> None:
    with pausable_server(home) as (server, runner), ThreadPoolExecutor(2) as clients:
        runner.pause()
        waiting = [clients.submit(classify, server.url, seed) for seed in range(2)]
        wait_until(lambda: server.state.serving().batcher.admitted == 2)
        runner.broken = True
        runner.resume()
        for future in waiting:
            answer = future.result()
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:fc7:problem:model-stopped")
        assert "injected" in server.state.why_not_ready()[0]
        wait_until(lambda: server.exit_codes == [1])


def half_sent(server: ProcessServer, body: bytes) -> socket.socket:
    """Send a request without the end of its body."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = (
        f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[:-10])
    return connection


def test_sigterm_answers_started_requests_rejects_others_and_exits_with_code_0(home: Path) -> None:
    body = pictures.jpeg()
    with process_server(home) as server, half_sent(server, body) as started:
        wait_until(lambda: "fc7_admitted_images" in httpx.get(f"{server.url}/metrics").text)
        time.sleep(0.2)  # until the incomplete request is read, which HTTP does not report
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert "shutting down" in httpx.get(f"{server.url}/readyz").json()["detail"]
        refused = classify(server.url)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:fc7:problem:draining")
        assert refused.headers["retry-after"]
        started.sendall(body[-10:])
        assert started.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert server.process.wait(20) == 0


def test_sigterm_waits_at_most_the_shutdown_timeout(home: Path) -> None:
    with process_server(home, FC7_SHUTDOWN_TIMEOUT_S="0.5") as server, half_sent(server, pictures.jpeg()):
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0


def test_acknowledged_images_survive_kill_9(home: Path) -> None:
    acknowledged: list[str] = []

    def add(url: str, first: int) -> None:
        with httpx.Client(base_url=url) as client:
            for seed in range(first, 1000, 4):
                try:
                    answer = client.put(f"/v1/images/{seed}.jpg", content=pictures.jpeg(seed, 48, 48), headers=JPEG)
                except httpx.TransportError:
                    return
                if answer.status_code == 201:
                    acknowledged.append(f"{seed}.jpg")

    with process_server(home) as server:
        threads = [threading.Thread(target=add, args=(server.url, first)) for first in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(acknowledged) >= 20)
        server.process.kill()
        for thread in threads:
            thread.join()
    with process_server(home) as server, httpx.Client(base_url=server.url) as client:
        kept = {image["key"] for image in client.get("/v1/images?limit=1000").json()["images"]}
        assert set(acknowledged) <= kept
        for key in acknowledged[-3:]:
            data = pictures.jpeg(int(key.removesuffix(".jpg")), 48, 48)
            [found] = client.post("/v1/search?k=1", content=data, headers=JPEG).json()["results"]
            assert found["neighbours"][0]["key"] == key
        assert client.get("/v1/index").json()["vectors"] == len(kept)


def test_endless_headers_are_rejected(shared_server: ThreadServer) -> None:
    with socket.create_connection(("127.0.0.1", shared_server.port), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Long: " + b"a" * 200_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    assert shared_server.client.get("/livez").status_code == 200


_LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_HALF = b"GET /livez HTTP/1.1\r\nX-Half: "


@pytest.mark.parametrize(
    ("before", "sent"),
    [(b"", b""), (b"", _HALF), (b"", b"\r\n"), (_LIVEZ, _HALF), (_LIVEZ, b"\r\n")],
    ids=["nothing", "half", "empty line", "half of the second", "empty line after the first"],
)
def test_a_connection_without_complete_headers_is_closed_after_a_timeout(
    shared_server: ThreadServer, monkeypatch: pytest.MonkeyPatch, before: bytes, sent: bytes
) -> None:
    monkeypatch.setattr("service.server._HEADER_S", 0.2)
    with socket.create_connection(("127.0.0.1", shared_server.port), timeout=10) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        assert connection.recv(65536) == b""


def test_a_response_on_a_kept_connection_does_not_wait_for_an_acknowledgement(
    shared_server: ThreadServer,
) -> None:
    with socket.create_connection(("127.0.0.1", shared_server.port), timeout=10) as connection:
        times = []
        for _ in range(8):
            started = time.perf_counter()
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            times.append(time.perf_counter() - started)
    assert min(times[1:]) < 0.03  # Nagle's algorithm with delayed acknowledgements would take 0.04 s each time


def test_thousands_of_pipelined_requests_are_answered_and_so_is_the_next_one(shared_server: ThreadServer) -> None:
    request = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1\r\n\r\nx"
    connections = [socket.create_connection(("127.0.0.1", shared_server.port), timeout=60) for _ in range(20)]
    for connection in connections:
        connection.sendall(request * 100)
    statuses: Counter[bytes] = Counter()
    for connection in connections:
        with connection:
            answers = b""
            while answers.count(b"HTTP/1.1 ") < 100 or not answers.endswith(b"}"):
                chunk = connection.recv(1 << 20)
                assert chunk, "the connection was closed"
                answers += chunk
            statuses.update(part[:3] for part in answers.split(b"HTTP/1.1 ")[1:])
    assert statuses == {b"400": 2_000}
    assert classify(shared_server.url).status_code == 200


def test_the_server_does_not_start_on_a_public_address_without_keys_or_with_an_invalid_setting(home: Path) -> None:
    with pytest.raises(SettingError, match="FC7_ALLOW_ANONYMOUS"), thread_server(home, host="0.0.0.0"):
        pass
    expected = "FC7_MAX_BATCH=many is not valid: expected a whole number from 1 to 1024"
    with pytest.raises(RuntimeError, match=expected), process_server(home, FC7_MAX_BATCH="many"):
        pass
