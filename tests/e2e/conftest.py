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
def filled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with the photographs and their quarters, to be copied."""
    home = tmp_path_factory.mktemp("filled")
    publish_tiny_model(home)
    with thread_server(home) as running:
        add_photographs(running.url)
    return home


@pytest.fixture(scope="session")
def server(filled_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the photographs and their quarters, for tests that change nothing; return the address."""
    home = shutil.copytree(filled_home, tmp_path_factory.mktemp("served") / "home")
    with thread_server(home, max_body_bytes=1_000_000) as running:
        yield running.url


@pytest.fixture
def own_server(filled_home: Path, tmp_path: Path) -> Iterator[ThreadServer]:
    """Serve the photographs and their quarters to a test that changes the index."""
    shutil.copytree(filled_home, tmp_path, dirs_exist_ok=True)
    with thread_server(tmp_path) as running:
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
