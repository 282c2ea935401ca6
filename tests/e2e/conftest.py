"""A browser, and servers with a tiny model and indexed photographs, for the tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.e2e.helpers import Visit, add_photographs, visiting
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",  # names of other sites
]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the photographs and their quarters, for tests that change nothing; return the address."""
    home = tmp_path_factory.mktemp("home")
    publish_tiny_model(home)
    with thread_server(home, max_body_bytes=1_000_000) as running:
        add_photographs(running.url)
        yield running.url


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ThreadServer]:
    """Serve the photographs and their quarters to a test that changes the index."""
    publish_tiny_model(tmp_path)
    with thread_server(tmp_path) as running:
        add_photographs(running.url)
        yield running


@pytest.fixture(scope="module")  # Playwright keeps an event loop running, which tests with asyncio do not tolerate
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("requires the chromium package of Debian (.ci/run installs it)")
    expect.set_options(timeout=20_000)  # seconds are not a failure on a busy machine
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Visit]:
    with visiting(browser, server) as a_visit:
        yield a_visit


@pytest.fixture
def own_visit(browser: Browser, own_server: ThreadServer) -> Iterator[Visit]:
    with visiting(browser, own_server.url) as a_visit:
        yield a_visit
