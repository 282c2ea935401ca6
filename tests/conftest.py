"""Markers by location: `browser` for tests in tests/e2e, `milvus` for tests whose name or folder contains "milvus"."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Prepare the process, before the tests import NumPy and torch.

    Processes that run tests side by side compute with one thread each: threads of several would wait for each other.
    HTTPX reads no file of certificates, which takes 0.1 s for each client: all servers of tests speak plain HTTP.
    Ctrl-C ends the processes of tests: they inherit that a shell ignores SIGINT in background jobs.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the markers, so that `-m "not browser"` and `-m "not milvus"` leave these tests out."""
    for item in items:
        if "tests/e2e/" in item.nodeid:
            item.add_marker(pytest.mark.browser)
        if "milvus" in item.nodeid.lower():
            item.add_marker(pytest.mark.milvus)
