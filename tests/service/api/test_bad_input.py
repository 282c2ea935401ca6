"""Invalid and unusual input over real HTTP: a clear problem or the right result, and the next request is served."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support import pictures
from tests.support.server import ProcessServer, ThreadServer, process_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}


def classify(client: httpx.Client, data: bytes, **parameters: Any) -> httpx.Response:
    return client.post("/v1/classify", content=data, headers=JPEG, params=parameters)


def probabilities(client: httpx.Client, data: bytes) -> dict[str, float]:
    answer = classify(client, data, k=6)
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    return {entry["label"]: entry["probability"] for entry in result["predictions"]}


def check_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:fc7:problem:")
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"I am a text that was named .jpg", 400, "image"),
        (pictures.jpeg()[:2000], 400, "image"),
        (b"%PDF-1.7 and so on", 415, "PDF is not supported"),
    ],
    ids=["empty", "text", "cut", "pdf"],
)
def test_an_unreadable_image_is_rejected_with_a_reason(
    client: httpx.Client, data: bytes, status: int, words: str
) -> None:
    assert words in check_problem(classify(client, data), status)["detail"]
    assert classify(client, pictures.jpeg()).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        pictures.encoded(pictures.scene().convert("CMYK")),
        pictures.encoded(Image.fromarray((np.arange(240 * 320).reshape(240, 320) % 65536).astype(np.uint16)), "PNG"),
        pictures.encoded(pictures.scene().convert("P"), "PNG"),
        pictures.encoded(pictures.scene().convert("RGBA"), "PNG"),
        pictures.encoded(pictures.scene().convert("L")),
        pictures.encoded(pictures.scene(width=1, height=1), "PNG"),
        pictures.encoded(pictures.scene(width=10_000, height=1), "PNG"),
        pictures.animated_gif(),
        pictures.encoded(pictures.scene(), "WEBP"),
        pictures.encoded(pictures.scene(), "BMP"),
        pictures.encoded(pictures.scene(), "TIFF"),
    ],
    ids=["cmyk", "16-bit", "palette", "alpha", "grey", "1x1", "10000x1", "animated", "webp", "bmp", "tiff"],
)
def test_unusual_images_are_classified(client: httpx.Client, data: bytes) -> None:
    assert sum(probabilities(client, data).values()) == pytest.approx(1, abs=1e-5)


def test_an_animation_counts_as_its_first_frame(client: httpx.Client) -> None:
    frames = Image.open(io.BytesIO(pictures.animated_gif()))
    first = pictures.encoded(frames.convert("RGB"), "PNG")
    assert probabilities(client, pictures.animated_gif()) == pytest.approx(probabilities(client, first), abs=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(client: httpx.Client, orientation: int) -> None:
    picture = pictures.scene(3)
    upright = probabilities(client, pictures.encoded(picture, "PNG"))
    assert probabilities(client, pictures.with_orientation(picture, orientation)) == pytest.approx(upright, abs=1e-6)
    if orientation > 1:
        stored = pictures.encoded(
            Image.open(io.BytesIO(pictures.with_orientation(picture, orientation))), "PNG", exif=b""
        )
        assert probabilities(client, stored) != pytest.approx(upright, abs=1e-3)


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("classify", "k=0", ["k=0", "1 to 6", "classes"]),
        ("classify", "k=10000", ["k=10000", "1 to 6", "classes"]),
        ("classify", "k=7", ["k=7", "1 to 6", "classes"]),
        ("classify", "views=3", ["views=3", "1 or 10"]),
        ("classify", "where=a:b", ["where", "not a parameter"]),
        ("search", "k=0", ["k=0", "1 to 1000"]),
        ("search", "k=10000", ["k=10000", "1 to 1000"]),
        ("search", "k=many", ["k=many", "1 to 1000"]),
        ("search", "mode=quick", ["mode=quick", "exact"]),
    ],
)
def test_the_error_for_an_invalid_parameter_names_it_and_its_range(
    client: httpx.Client, path: str, query: str, words: list[str]
) -> None:
    problem = check_problem(client.post(f"/v1/{path}?{query}", content=pictures.jpeg(), headers=JPEG), 422)
    assert problem["parameter"] == query.partition("=")[0]
    for word in words:
        assert word in problem["detail"]


def test_the_error_for_an_invalid_image_contains_its_index(client: httpx.Client) -> None:
    good = ("file", ("a.jpg", pictures.jpeg(), "image/jpeg"))
    for data, status in ((b"text", 400), (b"%PDF-1.7", 415)):
        answer = client.post("/v1/classify", files=[good, good, ("file", ("b.jpg", data, "image/jpeg")), good])
        problem = check_problem(answer, status)
        assert problem["index"] == 2
        assert "Image 2" in problem["detail"]


def test_33_images_are_too_many_and_32_are_not(client: httpx.Client) -> None:
    images = [("file", (f"{i}.jpg", pictures.jpeg(i, 64, 64), "image/jpeg")) for i in range(33)]
    problem = check_problem(client.post("/v1/classify", files=images), 413)
    assert problem["limit"] == 32
    assert "32" in problem["detail"]
    answer = client.post("/v1/classify", files=images[:32]).json()
    alone = [client.post("/v1/classify", files=[image]).json()["results"][0] for image in images[:32]]
    for together, single in zip(answer["results"], alone, strict=True):
        assert [entry["label"] for entry in together["predictions"]] == [
            entry["label"] for entry in single["predictions"]
        ]
        assert [entry["probability"] for entry in together["predictions"]] == pytest.approx(
            [entry["probability"] for entry in single["predictions"]], abs=1e-5
        )


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"Content-Type": "text/plain"}, b"x", 415, "text/plain"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"x", 415, "multipart/form-data"),
        ({"Content-Type": "multipart/form-data"}, b"x", 400, "boundary"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"no part", 400, "multipart"),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut',
            400,
            "incomplete",
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
            400,
            "Name a part 'file'",
        ),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b--\r\n", 400, "multipart"),
    ],
)
def test_a_malformed_body_is_rejected(
    client: httpx.Client, headers: dict[str, str], body: bytes, status: int, words: str
) -> None:
    problem = check_problem(client.post("/v1/classify", content=body, headers=headers), status)
    assert words in problem["detail"]


def test_errors_of_the_framework_are_problems_too(client: httpx.Client) -> None:
    check_problem(client.get("/v1/nothing"), 404)
    check_problem(client.get("/web/nothing.js"), 404)
    answer = client.put("/v1/classify")
    check_problem(answer, 405)
    assert answer.headers["allow"] == "POST, OPTIONS"


def raw_answer(port: int, head: str, *chunks: bytes) -> tuple[int, dict[str, Any], str]:
    """Send a request with an incomplete body; return the status, the problem and the `Connection` header."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        for chunk in chunks:
            connection.sendall(chunk)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read()), answer.getheader("connection", "")


def test_a_body_of_25_mb_is_rejected_before_it_is_sent(shared_server: ThreadServer) -> None:
    status, problem, connection = raw_answer(
        shared_server.port, "Content-Type: image/jpeg\r\nContent-Length: 25000000", b"only this"
    )
    assert (status, problem["limit"]) == (413, 20_000_000)
    assert connection == "close"


def test_chunks_are_counted_and_the_rest_is_not_read(shared_server: ThreadServer) -> None:
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    head = "Content-Type: image/jpeg\r\nTransfer-Encoding: chunked"
    status, problem, _ = raw_answer(shared_server.port, head, *[chunk] * 20)
    assert (status, problem["limit"]) == (413, 20_000_000)


def test_file_parts_count_towards_the_limit(shared_server: ThreadServer) -> None:
    head = "Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    chunks = [f"{len(part):x}\r\n".encode() + part + b"\r\n"] + [b"100000\r\n" + bytes(0x100000) + b"\r\n"] * 20
    status, problem, _ = raw_answer(shared_server.port, head, *chunks)
    assert (status, problem["limit"]) == (413, 20_000_000)
    wait_until(lambda: shared_server.app.state.body_budget.held == 0)


def test_a_client_that_sends_all_25_mb_still_gets_the_response(shared_server: ThreadServer) -> None:
    head = "Content-Type: image/jpeg\r\nContent-Length: 25000000"
    status, problem, _ = raw_answer(shared_server.port, head, *[bytes(1_000_000)] * 25)
    assert (status, problem["limit"]) == (413, 20_000_000)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessServer]:
    home: Path = tmp_path_factory.mktemp("process") / "home"
    publish_tiny_model(home)
    with process_server(home) as server:
        yield server


def test_a_decompression_bomb_is_rejected_by_its_header_without_using_much_memory(process: ProcessServer) -> None:
    bomb = pictures.bomb()
    assert len(bomb) < 200_000
    with httpx.Client(base_url=process.url, timeout=20) as client:
        assert classify(client, pictures.jpeg()).status_code == 200
        before = process.peak_memory()
        problem = check_problem(classify(client, bomb), 422)
        assert problem["limit"] == 50_000_000
        assert "900,000,000" in problem["detail"]
        assert process.peak_memory() - before < 20_000_000
        assert classify(client, pictures.jpeg()).status_code == 200


def test_a_large_body_leaves_no_file_behind(process: ProcessServer) -> None:
    def files() -> set[str]:
        return {str(link.readlink()) for link in Path(f"/proc/{process.process.pid}/fd").iterdir() if link.is_symlink()}

    with httpx.Client(base_url=process.url, timeout=20) as client:
        before = files()
        data = pictures.encoded(Image.effect_noise((2000, 2000), 90), "BMP")
        answer = client.post("/v1/classify", files=[("file", ("a.bmp", data, "image/bmp"))] * 3)
        assert answer.status_code == 200, answer.text
        assert {name for name in files() - before if not name.startswith("socket:")} == set()
