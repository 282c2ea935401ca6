"""Malformed inference requests over real HTTP: each gets a clear `{"error": ...}`, and the next request is served."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures
from tests.support.pausable_model import PausableRunner
from tests.support.server import ProcessServer, ThreadServer, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

PATH = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"
VIEW = 224 * 224 * 3
JPEG = pictures.jpeg()


def pixels(**change: Any) -> dict[str, Any]:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 224, 224, 3]}
    return (
        tensor | ({} if {"data", "parameters"} & change.keys() else {"parameters": {"binary_data_size": VIEW}}) | change
    )


def image(raw: bytes, count: int = 1) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": len(raw)}}


def element(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def post(client: httpx.Client, document: object, raw: bytes = b"", **headers: str) -> httpx.Response:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    return client.post(PATH, content=head + raw, headers={LENGTH: str(len(head))} | headers)


def check_error(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert [*answer.json()] == ["error"]
    for word in words:
        assert word in answer.json()["error"]
    assert len(answer.text) < 600


@pytest.fixture(autouse=True)
def _the_next_request_is_served(client: httpx.Client) -> Iterator[None]:
    yield
    assert post(client, {"inputs": [image(element(JPEG))]}, element(JPEG)).status_code == 200


@pytest.mark.parametrize(
    ("tensor", "raw", "status", "words"),
    [
        (pixels(shape=[2, 224, 224, 3]), bytes(VIEW), 400, ["301,056 bytes", "binary_data_size is 150,528"]),
        (pixels(), bytes(VIEW - 1), 400, ["150,527 bytes follow", "150,528"]),
        (pixels(), bytes(VIEW + 7), 400, ["150,535 bytes follow"]),
        (pixels(parameters={"binary_data_size": VIEW - 1}), bytes(VIEW - 1), 400, ["150,528 bytes"]),
        (pixels(parameters={"binary_data_size": -1}), b"", 400, ["binary_data_size", "-1"]),
        (pixels(parameters={"binary_data_size": 10**30}), bytes(VIEW), 400, ["150,528 bytes follow"]),
        (pixels(parameters={"binary_data_size": "150528"}), bytes(VIEW), 400, ["binary_data_size"]),
        (pixels(parameters={"binary_data_size": True}), b"\0", 400, ["binary_data_size", "True"]),
        (pixels(parameters={"shared_memory_region": "a"}), b"", 400, ["shared_memory_region", "binary_data_size"]),
        (pixels(parameters=[]), b"", 400, ["the parameters of input pixels"]),
        (pixels(datatype="UINT9"), bytes(VIEW), 400, ["'UINT9'", "not a datatype of the protocol", "UINT8"]),
        (pixels(datatype="FP32"), bytes(VIEW), 400, ["'FP32'", "UINT8"]),
        (pixels(datatype=None), bytes(VIEW), 400, ["UINT8", "None"]),
        (pixels(shape=[-1, 224, 224, 3]), bytes(VIEW), 400, ["[N, 224, 224, 3]", "-1"]),
        (pixels(shape=[0, 224, 224, 3]), b"", 400, ["[N, 224, 224, 3]", "N of at least 1"]),
        (pixels(shape=[1, 3, 224, 224]), bytes(VIEW), 400, ["[N, 224, 224, 3]"]),
        (pixels(shape=[1, 224, 224, 3.0]), bytes(VIEW), 400, ["[N, 224, 224, 3]"]),
        (pixels(shape=[True, 224, 224, 3]), bytes(VIEW), 400, ["[N, 224, 224, 3]"]),
        (pixels(shape=[]), bytes(VIEW), 400, ["[N, 224, 224, 3]"]),
        (pixels(shape="1"), bytes(VIEW), 400, ["[N, 224, 224, 3]"]),
        (pixels(shape=[1] * 50_000), bytes(VIEW), 400, ["list of 50,000 entries"]),
        (pixels(shape=[1] * 100_001), bytes(VIEW), 400, ["more than 100,000 values"]),
        (pixels(shape=[2**62, 224, 224, 3]), bytes(VIEW), 413, ["at most 32 images"]),
        (pixels(shape=[10**40, 224, 224, 3]), bytes(VIEW), 413, ["at most 32 images"]),
        (pixels(shape=[33, 224, 224, 3], parameters={"binary_data_size": 33 * VIEW}), bytes(33 * VIEW), 413, ["32"]),
        (pixels(data=[0] * (VIEW - 1)), b"", 400, ["150,528 values", "has 150,527 values"]),
        (pixels(data=[0] * VIEW), b"tail", 400, ["4 bytes follow"]),
        (pixels(data=[0] * (VIEW - 1) + [256]), b"", 400, ["0 to 255"]),
        (pixels(data=[0] * (VIEW - 1) + [-1]), b"", 400, ["0 to 255"]),
        (pixels(data=[0] * (VIEW - 1) + [10**30]), b"", 400, ["0 to 255"]),
        (pixels(data=[0.5] * VIEW), b"", 400, ["whole numbers"]),
        (pixels(data=["0"] * VIEW), b"", 400, ["more than 100,000 values"]),
        (pixels(data=["0"] * 9), b"", 400, ["whole numbers"]),
        (pixels(data=[0] * (VIEW - 1) + [[0]]), b"", 400, ["nested differently"]),
        (pixels(data=[[0, 1], [2]]), b"", 400, ["regular list"]),
        (pixels(data={}), b"", 400, ["whole numbers"]),
        (pixels(data=None), b"", 400, ["whole numbers"]),
        (pixels(data=[[0] * 224 * 3] * 224), b"", 400, ["flat or nested"]),
        (
            pixels(data=[0] * VIEW, parameters={"binary_data_size": VIEW}),
            bytes(VIEW),
            400,
            ["either in data or in binary_data_size"],
        ),
        (pixels(parameters={}), b"", 400, ["either in data or in binary_data_size"]),
        (pixels(name="data"), bytes(VIEW), 400, ["'data'", "pixels or image"]),
        (pixels(name=["pixels"]), bytes(VIEW), 400, ["pixels or image"]),
        (pixels(name="\ud800" * 10_000), bytes(VIEW), 400, ["pixels or image"]),
        ("pixels", b"", 400, ["inputs[0]", "object"]),
        (image(element(JPEG)[:-1]), element(JPEG)[:-1], 400, ["element 0", "extends beyond"]),
        (image(b"\x05\0"), b"\x05\0", 400, ["element 0", "extends beyond"]),
        (image(b"\xff\xff\xff\xff" + JPEG), b"\xff\xff\xff\xff" + JPEG, 400, ["element 0", "extends beyond"]),
        (
            image(element(JPEG) + element(b"")[:3], 2),
            element(JPEG) + element(b"")[:3],
            400,
            ["element 1", "extends beyond"],
        ),
        (image(element(JPEG), 2), element(JPEG), 400, ["2 elements are announced, but there are only 1"]),
        (image(element(JPEG) * 2), element(JPEG) * 2, 400, ["bytes follow its 1 elements"]),
        (image(b""), b"", 400, ["1 elements are announced, but there are only 0"]),
        (image(element(b"")), element(b""), 400, ["empty"]),
        (image(element(b"text")), element(b"text"), 400, ["The image cannot be read"]),
        (image(element(JPEG) + element(b"text"), 2), element(JPEG) + element(b"text"), 400, ["Image 1"]),
        (image(element(b"%PDF-1.7")), element(b"%PDF-1.7"), 415, ["PDF"]),
        (image(element(pictures.bomb())), element(pictures.bomb()), 422, ["900,000,000 pixels"]),
        (image(b"", 33), b"", 413, ["at most 32 images"]),
        (image(b"") | {"shape": [1, 2]}, b"", 400, ["[N] or [N, 1]"]),
        ({"name": "image", "datatype": "BYTES", "shape": [1], "data": ["?"]}, b"", 400, ["element 0", "base64"]),
        ({"name": "image", "datatype": "BYTES", "shape": [1], "data": [3]}, b"", 400, ["element 0", "base64"]),
        ({"name": "image", "datatype": "BYTES", "shape": [2], "data": ["AA=="]}, b"", 400, ["[2]", "1 elements"]),
    ],
)
def test_a_malformed_tensor_is_rejected_with_a_reason(
    client: httpx.Client, tensor: object, raw: bytes, status: int, words: list[str]
) -> None:
    check_error(post(client, {"inputs": [tensor]}, raw), status, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, ["one tensor", "a list of 0"]),
        ({"inputs": [pixels(), pixels()]}, ["one tensor", "a list of 2"]),
        ({"inputs": None}, ["one tensor", "None"]),
        ({"id": 7}, ["id must be a string"]),
        ({"parameters": {"sequence_id": 3}}, ["sequence_id", "binary_data_output, threshold, views"]),
        ({"parameters": {"binary_data_output": "yes"}}, ["binary_data_output", "true or false"]),
        ({"parameters": {"views": 3}}, ["views must be 1, or 10"]),
        ({"parameters": {"views": 10}}, ["views must be 1, or 10", "pixels"]),
        ({"outputs": {}}, ["outputs must be a list"]),
        ({"outputs": ["fc7"]}, ["outputs[0]"]),
        ({"outputs": [{"name": "fc6"}]}, ["'fc6'", "probabilities, fc7"]),
        ({"outputs": [{"name": "fc7"}, {"name": "fc7"}]}, ["requested twice"]),
        (
            {"outputs": [{"name": "fc7", "parameters": {"classification": 2}}]},
            ["classification is only supported for probabilities"],
        ),
        ({"outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}, ["from 1 to 6"]),
        ({"outputs": [{"name": "probabilities", "parameters": {"classification": 7}}]}, ["from 1 to 6"]),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": 1}}]}, ["true or false"]),
    ],
)
def test_a_malformed_request_is_rejected_with_a_reason(
    client: httpx.Client, change: dict[str, Any], words: list[str]
) -> None:
    check_error(post(client, {"inputs": [pixels()]} | change, bytes(VIEW)), 400, *words)


@pytest.mark.parametrize(
    ("body", "length", "words"),
    [
        (b"", None, ["not valid JSON"]),
        (b"{", None, ["not valid JSON"]),
        (b"[1]", None, ["object"]),
        (b"\xff\xfe{", None, ["not valid JSON"]),
        (b"[" * 100_000, None, ["not valid JSON"]),
        (b'{"id":' + b"9" * 100_000 + b"}", None, ["not valid JSON"]),
        (b"{}", "3", [LENGTH, "'3'"]),
        (b"{}", "-1", [LENGTH]),
        (b"{}", "two", [LENGTH]),
        (b"{}", "9" * 10_000, [LENGTH]),
        (b"{}", "\u00b2".encode().decode("latin-1"), [LENGTH]),
        (b"{}", "0", ["not valid JSON"]),
        (b"{}", "1", ["not valid JSON"]),
        (b"{}", "2", ["inputs"]),
    ],
)
def test_a_body_that_is_not_a_request_is_rejected_with_a_reason(
    client: httpx.Client, body: bytes, length: str | None, words: list[str]
) -> None:
    headers = {} if length is None else {LENGTH.encode(): length.encode("latin-1")}
    check_error(client.post(PATH, content=body, headers=headers), 400, *words)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("gzip", gzip.compress(b"{}", mtime=0)[:-1], 400, ["incomplete"]),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", 400, ["4 bytes follow"]),
        ("gzip", b"{}", 400, ["not valid gzip"]),
        ("gzip", b"", 400, ["incomplete"]),
        ("deflate", b"{}", 400, ["not valid deflate"]),
        ("br", b"{}", 415, ["'br'", "gzip, deflate"]),
        ("gzip, deflate", b"{}", 415, ["gzip, deflate"]),
        ("identity", b"{}", 400, ["inputs"]),
    ],
)
def test_a_body_that_does_not_match_its_content_encoding_is_rejected(
    client: httpx.Client, encoding: str, body: bytes, status: int, words: list[str]
) -> None:
    check_error(client.post(PATH, content=body, headers={"Content-Encoding": encoding}), status, *words)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessServer]:
    home: Path = tmp_path_factory.mktemp("process") / "home"
    publish_tiny_model(home)
    with process_server(home) as server:
        yield server


def test_decompression_bombs_are_rejected_without_using_much_memory(process: ProcessServer) -> None:
    bombs = [
        ("gzip", gzip.compress(bytes(300_000_000)), 413, "larger than 20,000,000 bytes"),
        ("deflate", zlib.compress(bytes(300_000_000)), 413, "larger than 20,000,000 bytes"),
        ("gzip", gzip.compress(b"[" + b"[]," * 6_000_000 + b"[]]"), 400, "more than 100,000 values"),
        ("gzip", gzip.compress(b"[" + b"{}," * 6_000_000 + b"{}]"), 400, "more than 100,000 values"),
        ("gzip", gzip.compress(b"[" + b'"a",' * 4_500_000 + b'""]'), 400, "more than 100,000 values"),
    ]
    assert max(len(bomb) for _, bomb, _, _ in bombs) < 300_000
    with httpx.Client(base_url=process.url, timeout=20) as client:
        before = process.peak_memory()
        for encoding, bomb, status, words in bombs:
            check_error(client.post(PATH, content=bomb, headers={"Content-Encoding": encoding}), status, words)
        assert process.peak_memory() - before < 100_000_000
        assert post(client, {"inputs": [pixels()]}, bytes(VIEW)).status_code == 200


def test_decompressed_bytes_count_towards_the_budget(home: Path) -> None:
    with thread_server(home, max_body_bytes=1_000_000, max_buffer_bytes=1_000_000) as server:
        body = gzip.compress(json.dumps({"inputs": [], "id": " " * 999_000}).encode())
        check_error(
            server.client.post(PATH, content=body, headers={"Content-Encoding": "gzip"}), 503, "bytes of bodies"
        )
        wait_until(lambda: server.app.state.body_budget.held == 0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/another", 404),
        ("GET", "/v2/models/tiny/versions/2", 404),
        ("GET", "/v2/models/tiny/versions/one", 422),
        ("GET", "/v2/models/%ff%fe", 422),
        ("GET", "/v2/models/tiny/versions/2/ready", 404),
        ("POST", "/v2/models/another/infer", 404),
        ("POST", "/v2/repository/index", 404),
        ("GET", PATH, 405),
        ("DELETE", "/v2", 405),
    ],
)
def test_errors_for_unknown_paths_have_the_format_of_the_protocol(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path, follow_redirects=True)
    check_error(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


def test_a_body_over_the_limit_is_rejected_before_it_is_sent(shared_server: ThreadServer) -> None:
    with socket.create_connection(("127.0.0.1", shared_server.port), timeout=20) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 25000000\r\n\r\nonly".encode())
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.getheader("connection")) == (413, "close")
        assert "20,000,000" in json.loads(answer.read())["error"]


def test_an_incomplete_body_times_out(home: Path) -> None:
    head = json.dumps({"inputs": [pixels()]}).encode()
    start = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n"
        f"{LENGTH}: {len(head)}\r\nContent-Length: {len(head) + VIEW}\r\n\r\n"
    )
    with thread_server(home, upload_timeout_s=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(start.encode() + head + bytes(1000))
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408
            assert "0.3 s" in json.loads(answer.read())["error"]
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(start.encode() + head + bytes(1000))
        wait_until(lambda: server.app.state.body_budget.held == 0 and server.state.in_flight == 0)
        assert post(server.client, {"inputs": [pixels()]}, bytes(VIEW)).status_code == 200


def test_deadline_full_queue_and_drain_errors_have_the_format_of_the_protocol(home: Path) -> None:
    with thread_server(home, make_runner=PausableRunner, deadline_s=0.4, queue_size=2, max_images=2) as server:
        runner = server.state.serving().runner
        assert isinstance(runner, PausableRunner)
        runner.pause()
        try:
            late = post(server.client, {"inputs": [pixels()]}, bytes(VIEW))
            check_error(late, 504, "0.4 s")
            wait_until(lambda: server.state.serving().batcher.admitted == 0)
            ticket = server.state.serving().batcher.admit(2)
            full = post(server.client, {"inputs": [pixels()]}, bytes(VIEW))
            check_error(full, 503, "images")
            assert full.headers["retry-after"]
            ticket.__exit__(None, None, None)
        finally:
            runner.resume()
        server.state.in_flight += 1  # keeps the draining server up
        server.state.drain()
        check_error(post(server.client, {"inputs": [pixels()]}, bytes(VIEW)), 503, "shutting down")
        check_error(server.client.get("/v2/models/tiny/ready"), 503, "shutting down")
        assert server.client.get("/v2/health/live").status_code == 200
        server.state.in_flight -= 1


def test_an_unexpected_error_has_the_format_of_the_protocol(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with thread_server(home) as server:
        server.state.decode_pool.shutdown()
        check_error(post(server.client, {"inputs": [pixels()]}, bytes(VIEW)), 500, "An unexpected error occurred")
    assert "cannot schedule new futures" in capsys.readouterr().out
