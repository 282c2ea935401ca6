"""A browser, and a server with a tiny model and indexed photographs, shared by all tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.e2e.helpers import ODD_KEY, Visit, crops, photograph, visiting
from tests.support.server import thread_server
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
    """Serve the photographs and their quarters; return the address."""
    home = tmp_path_factory.mktemp("home")
    publish_tiny_model(home)
    with thread_server(home, max_body_bytes=1_000_000) as running:
        for key, data in [*crops(), (ODD_KEY, photograph("chelsea.png"))]:
            httpx.put(f"{running.url}/v1/images/{quote(key, safe='')}", content=data).raise_for_status()
        yield running.url


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
