"""Markers by location: `browser` for tests in tests/e2e, `milvus` for tests whose name or folder contains "milvus"."""

from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C end the processes of tests: they inherit that a shell ignores SIGINT in background jobs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the markers, so that `-m "not browser"` and `-m "not milvus"` leave these tests out."""
    for item in items:
        if "tests/e2e/" in item.nodeid:
            item.add_marker(pytest.mark.browser)
        if "milvus" in item.nodeid.lower():
            item.add_marker(pytest.mark.milvus)
