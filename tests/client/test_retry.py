"""A server that is busy, restarting or gone; Retry-After; which requests are repeated."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from fc7_client import (
    ConnectionFailedError,
    DeadlineError,
    Fc7ClientError,
    RateLimitedError,
    Retry,
    ServerError,
    UnavailableError,
    UnexpectedAnswerError,
)

from tests.client.helpers import OpenClient, ScriptedServer
from tests.service.test_lifecycle import classify, pausable_server
from tests.support import pictures
from tests.support.pausable_model import PausableRunner
from tests.support.server import ThreadServer, thread_server, wait_until

BUSY = b'{"type": "urn:fc7:problem:busy", "title": "Busy", "status": 503, "detail": "Too much to do."}'
MODELS = (200, {"Content-Type": "application/json"}, b'{"models": []}')
FAST = Retry(total_s=20, first_pause_s=0.01, max_pause_s=0.02)


@contextmanager
def full_server(home: Path) -> Iterator[tuple[ThreadServer, threading.Event]]:
    """A server whose queue is full until the event is set."""
    with pausable_server(home, queue_size=1, max_images=1) as (server, runner), ThreadPoolExecutor() as pool:
        runner.pause()
        waiting = pool.submit(classify, server.url)
        wait_until(lambda: "fc7_admitted_images 1.0" in server.client.get("/metrics").text)
        freed = threading.Event()
        pool.submit(_resume_when, freed, runner)
        try:
            yield server, freed
        finally:
            freed.set()
            assert waiting.result().status_code == 200


def _resume_when(freed: threading.Event, runner: PausableRunner) -> None:
    freed.wait(20)
    runner.resume()


def test_a_full_queue_is_waited_out(home: Path, open_client: OpenClient) -> None:
    statuses: list[int] = []

    def on_response(response: httpx.Response) -> None:
        statuses.append(response.status_code)
        freed.set()

    with full_server(home) as (server, freed):
        start = time.monotonic()
        answer = open_client(server.url, on_response=on_response).classify(pictures.jpeg(1))
        assert answer.results[0].predictions
        assert (statuses[0], statuses[-1]) == (503, 200)
        assert time.monotonic() - start >= 1, "Retry-After was undercut"


def test_a_retry_after_beyond_the_total_time_is_raised_immediately(home: Path, open_client: OpenClient) -> None:
    with full_server(home) as (server, _):
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="limit of 1 images") as caught:
            open_client(server.url, retry=Retry(total_s=0.9)).classify(pictures.jpeg(1))
        assert time.monotonic() - start < 0.9
        assert (caught.value.slug, caught.value.retry_after) == ("queue-full", 1)


def test_a_restart_is_waited_out(home: Path, open_client: OpenClient) -> None:
    with thread_server(home) as first:
        client = open_client(first.url, retry=FAST)
        client.put_image("before", pictures.jpeg(0))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.put_image, "during", pictures.jpeg(1))
        time.sleep(0.1)  # some tries fail
        with thread_server(home, port=first.port):
            assert answer.result(20).outcome == "added"
            assert sorted(image.key for image in client.list_images()) == ["before", "during"]


def test_a_server_that_is_gone_is_reported_after_the_total_time(home: Path, open_client: OpenClient) -> None:
    with thread_server(home) as server:
        client = open_client(server.url, retry=Retry(total_s=0.5))
        client.models()
    start = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="fc7 serve") as caught:
        client.models()
    assert caught.value.tries > 1
    assert time.monotonic() - start < 5


def test_without_retries_the_first_failure_is_raised(scripted: ScriptedServer, open_client: OpenClient) -> None:
    scripted.answers.extend([(503, {}, BUSY), MODELS])
    with pytest.raises(UnavailableError, match="Too much to do") as caught:
        open_client(scripted.url, retry=Retry(total_s=0)).models()
    assert caught.value.retry_after is None
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("status", [429, 502, 503])
def test_temporary_statuses_are_retried(scripted: ScriptedServer, open_client: OpenClient, status: int) -> None:
    scripted.answers.extend([(status, {}, b"<html>"), (status, {"Retry-After": "0"}, BUSY), MODELS])
    assert open_client(scripted.url, retry=FAST).models() == []
    assert len(scripted.requests) == 3


def test_a_date_in_retry_after_is_understood(scripted: ScriptedServer, open_client: OpenClient) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    scripted.answers.append((429, {"Retry-After": later}, BUSY))
    with pytest.raises(RateLimitedError) as caught:
        open_client(scripted.url).models()
    assert caught.value.retry_after == pytest.approx(100, abs=5)


@pytest.mark.parametrize(("status", "error"), [(500, ServerError), (504, DeadlineError), (302, ServerError)])
def test_other_failures_are_not_retried(
    scripted: ScriptedServer, open_client: OpenClient, status: int, error: type[Exception]
) -> None:
    scripted.answers.append((status, {"Location": "/elsewhere"}, b"sorry"))
    with pytest.raises(error, match=rf"{status} .*sorry"):
        open_client(scripted.url, retry=FAST).models()


def test_a_broken_connection_is_retried_if_that_is_safe(scripted: ScriptedServer, open_client: OpenClient) -> None:
    client = open_client(scripted.url, retry=FAST)
    scripted.answers.extend([None, MODELS])
    assert client.models() == []
    scripted.answers.extend([None, MODELS])
    with pytest.raises(ConnectionFailedError, match="1 try"):
        client.start_job("map")
    assert [request[0] for request in scripted.requests] == ["GET", "GET", "POST"]


def test_a_retried_body_is_sent_in_full(scripted: ScriptedServer, open_client: OpenClient, tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    archive.write_bytes(b"PK" * 2_000_000)
    scripted.answers.extend([(503, {}, BUSY), (400, {}, BUSY)])
    with pytest.raises(Fc7ClientError, match="Too much"):
        open_client(scripted.url, retry=FAST).start_job("archive", archive)
    assert [len(body) for *_, body in scripted.requests] == [4_000_000, 4_000_000]


def test_an_answer_of_another_server_is_explained(scripted: ScriptedServer, open_client: OpenClient) -> None:
    client = open_client(scripted.url, retry=FAST)
    scripted.answers.extend([(200, {}, b"<html>hello</html>"), (200, {}, b'{"models": 3}')])
    with pytest.raises(UnexpectedAnswerError, match="fc7 server"):
        client.models()
    with pytest.raises(UnexpectedAnswerError, match="models"):
        client.models()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "", "http://"])
def test_an_invalid_address_is_rejected(open_client: OpenClient, url: str) -> None:
    with pytest.raises(Fc7ClientError, match="http://HOST:PORT"):
        open_client(url)
