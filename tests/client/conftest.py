"""Each test of the client runs with both clients; the server is real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.helpers import ASYNC, SYNC, OpenClient, ScriptedServer, open_clients
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(params=[SYNC, ASYNC])
def open_client(request: pytest.FixtureRequest) -> Iterator[OpenClient]:
    with open_clients(request.param) as open_one:
        yield open_one


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    publish_tiny_model(folder)
    return folder


@pytest.fixture
def server(home: Path) -> Iterator[ThreadServer]:
    with thread_server(home) as running:
        yield running


@pytest.fixture
def client(server: ThreadServer, open_client: OpenClient) -> Any:
    return open_client(server.url)


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()
