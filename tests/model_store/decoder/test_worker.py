"""Worker processes: the same pixels, limits that hold, and replacement after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_store.decoder.limits import DecodeLimits
from model_store.decoder.worker import DecodeWorker
from model_store.errors import (
    DecodeMemoryError,
    DecoderCrashError,
    DecodeTimeError,
    ImageFormatError,
    ImageTooLargeError,
    ImageUnreadableError,
)
from model_store.image import inspect_and_prepare
from tests.support import costly_images as costly
from tests.support.pictures import encoded, jpeg, scene


@pytest.fixture(scope="module")
def worker() -> Iterator[DecodeWorker]:
    worker = DecodeWorker(DecodeLimits(seconds=0.5, bytes=20_000_000))
    yield worker
    worker.close()


def test_a_worker_returns_what_a_thread_would(worker: DecodeWorker) -> None:
    for data in (jpeg(), encoded(scene(3), "AVIF"), encoded(scene(2).convert("RGBA"), "PNG")):
        expected, found = inspect_and_prepare(data), worker.decode(data)
        assert np.array_equal(found.pixels, expected.pixels)
        assert (found.width, found.height, found.format) == (expected.width, expected.height, expected.format)


def test_errors_are_those_of_a_thread(worker: DecodeWorker) -> None:
    with pytest.raises(ImageUnreadableError, match="empty"):
        worker.decode(b"")
    with pytest.raises(ImageFormatError, match="PDF"):
        worker.decode(b"%PDF-1.7")
    with pytest.raises(ImageTooLargeError, match="50,000,000"):
        worker.decode(costly.png(9000, 9000, depth=1, color=0))


def test_a_decode_that_takes_too_long_is_stopped_and_the_worker_replaced() -> None:
    # On a fast core, the decoder needs more memory than the other tests allow before the time is over.
    worker = DecodeWorker(DecodeLimits(seconds=0.5, bytes=400_000_000))
    try:
        worker.decode(jpeg())
        before = worker.pid
        started = time.monotonic()
        with pytest.raises(DecodeTimeError, match=r"0.5 s .*FC7_DECODE_S"):
            worker.decode(costly.rle_bmp(40_000_000, 1))
        assert time.monotonic() - started < 4
        worker.decode(jpeg())
        assert worker.pid != before
    finally:
        worker.close()


def test_a_decode_that_needs_too_much_memory_is_stopped(worker: DecodeWorker) -> None:
    with pytest.raises(DecodeMemoryError, match=r"20 MB .*FC7_MAX_DECODE_MB"):
        worker.decode(costly.png(6000, 6000))
    worker.decode(jpeg())


def test_a_killed_worker_costs_one_picture(worker: DecodeWorker) -> None:
    worker.decode(jpeg())
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)  # while it is idle
    time.sleep(0.1)
    worker.decode(jpeg())
    second = worker.pid
    assert second is not None
    assert second != first
    threading.Timer(0.15, os.kill, (second, signal.SIGSEGV)).start()
    with pytest.raises(DecoderCrashError, match="SIGSEGV"):
        worker.decode(costly.rle_bmp(40_000_000, 1))
    worker.decode(jpeg())


def test_the_process_has_no_secrets_and_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FC7_API_KEYS", "admin:secret-secret-secret")
    worker = DecodeWorker(DecodeLimits())
    try:
        worker.decode(jpeg())
        assert b"secret" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
        loaded = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "torch" not in loaded
        assert "onnxruntime" not in loaded
    finally:
        worker.close()


def test_a_worker_ends_with_its_parent() -> None:
    program = (
        "from model_store.decoder.limits import DecodeLimits\nfrom model_store.decoder.worker import DecodeWorker\n"
        "from tests.support.pictures import jpeg\nimport os\nworker = DecodeWorker(DecodeLimits())\n"
        "worker.decode(jpeg())\nprint(worker.pid, flush=True)\nos._exit(0)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{int(output.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{int(output.stdout)}").exists()
