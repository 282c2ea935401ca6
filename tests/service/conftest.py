"""A home with a tiny real model, and a server shared by all tests that do not change its state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("shared") / "home"
    publish_tiny_model(home)
    with thread_server(home) as server:
        yield server


@pytest.fixture
def client(shared_server: ThreadServer) -> httpx.Client:
    return shared_server.client


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    publish_tiny_model(folder)
    return folder
