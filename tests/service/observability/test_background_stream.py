"""Logging neither blocks nor ends the service, whatever the state of standard output."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.observability.background_stream import BackgroundStream
from service.observability.logs import lost_line, make_logger
from tests.support.server import environment_of, wait_until


def report(lines: int) -> str:
    return lost_line("json", lines)


@contextmanager
def pipe(*, blocking: bool = True) -> Iterator[tuple[int, BackgroundStream]]:
    """Yield the reading end of a pipe, and a stream that writes to it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    stream = BackgroundStream(writer, lost_line=report)
    try:
        yield reader, stream
    finally:
        os.set_blocking(reader, False)
        with suppress(BlockingIOError):
            while os.read(reader, 1 << 20):
                pass
        stream.finish(5)
        os.close(reader)
        os.close(writer)


def read_until(reader: int, words: bytes) -> bytes:
    """Read whole lines until one contains `words`."""
    data = b""
    while words not in data or not data.endswith(b"\n"):
        assert select.select([reader], [], [], 10)[0], data[-1000:]
        data += os.read(reader, 1 << 20)
    return data


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_does_not_block_and_lost_lines_are_reported_once_it_is_read(blocking: bool) -> None:
    with pipe(blocking=blocking) as (reader, stream):
        started = time.monotonic()
        for number in range(5_000):
            stream.write(f"{number:0100d}\n")
        assert time.monotonic() - started < 1
        lost = stream.lost
        assert lost > 1_000
        data = read_until(reader, b"log lines lost").decode().splitlines()
        numbers = [int(line) for line in data if line.isdigit()]
        assert numbers == sorted(set(numbers))  # in order
        assert numbers[:2_000] == list(range(2_000))  # the newer ones are lost
        [reported] = [json.loads(line) for line in data if not line.isdigit()]
        assert (reported["event"], reported["lines"]) == ("log lines lost", lost)
        assert len(numbers) + lost == 5_000
        stream.write("works again\n")
        assert read_until(reader, b"again") == b"works again\n"


def test_a_full_disk_and_a_closed_descriptor_lose_lines_but_raise_nothing() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (full, None, 999):
        stream = BackgroundStream(descriptor, lost_line=report)
        for _ in range(10):
            stream.write("lost\n")
        stream.finish(5)
        assert stream.lost == 10
        stream.write("after the end\n")
        assert stream.lost == 11
    os.close(full)


def test_a_reader_that_went_away_loses_lines_but_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = BackgroundStream(writer, lost_line=report)
    stream.write("lost\n")
    stream.finish(5)
    os.close(writer)
    assert stream.lost == 1


def test_everything_is_written_in_order_at_the_end_and_long_lines_are_cut(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        stream = BackgroundStream(file.fileno(), lost_line=report)
        for number in range(1_000):
            stream.write(f"{number}\n")
        stream.write("\udcff" + "a" * 100_000 + "\n")
        stream.finish(5)
    *lines, last = (tmp_path / "log").read_text().splitlines()
    assert lines == [str(number) for number in range(1_000)]
    assert last.startswith("\\udcffaaa")
    assert len(last) < 40_000


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_client_cannot_add_lines_or_terminal_commands_to_the_log(log_format: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        make_logger(log_format, "info", file).info("request", path="/a\n\x1b[2J\r\u2028\u202eb\x9b")
    text = (tmp_path / "log").read_text()
    assert text.count("\n") == 1
    assert not set("\x1b\r\u2028\u202e\x9b") & set(text)
    assert "\\x1b" in text or "\\u001b" in text


def unread_pipe() -> int:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_inheritable(writer, True)
    del reader  # stays open and unread
    return writer


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_device() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    "make_output", [unread_pipe, full_device, None, pytest.param(closed_pipe, marks=pytest.mark.slow)]
)
def test_the_service_answers_and_stops_whatever_its_output_does(
    home: Path, make_output: Callable[[], int] | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    output = None if make_output is None else make_output()
    environment = environment_of(home) | {
        "FC7_PORT": str(port),
        "FC7_SHUTDOWN_TIMEOUT_S": "4",
        "FC7_LOG_LEVEL": "debug",  # probes are logged too
    }
    command = 'exec "$0" -c "$1" serve' + (" >&- 2>&-" if make_output is None else "")
    process = subprocess.Popen(
        ["/bin/sh", "-c", command, sys.executable, "from service.cli import main; main()"],
        env=environment,
        stdout=output,
        stderr=output,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _status(f"{url}/readyz") == 200)
        with httpx.Client(base_url=url) as client:
            for number in range(60):
                assert client.get(f"/livez?{number}", headers={"X-Request-ID": "a" * 100}).status_code == 200
            answer = client.post("/v1/classify", content=b"x" * 100, headers={"Content-Type": "image/jpeg"})
            assert answer.status_code == 400
            lost = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("fc7_log_lines"))
        assert make_output is unread_pipe or float(lost.split()[1]) > 60
        process.send_signal(signal.SIGTERM)
        assert process.wait(4) == 0
    finally:
        process.kill()
        process.wait()


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0
