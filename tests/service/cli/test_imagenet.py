"""`fc7 train --from imagenet`: the model is imported once; without a network, the error says how to do it by hand."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from model_store.training.errors import DownloadError
from model_store.training.importers.download import PUBLIC_FILES, PublicFile
from service.cli.training.imports import IMAGENET, imagenet_version
from service.settings import load_settings
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the public file be on a port where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/net.pth"
    public = PublicFile("net.pth", url, "sha256", "0" * 64, 10, "torchvision")
    monkeypatch.setitem(PUBLIC_FILES, "torchvision", {"alexnet": public})
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("no_network")
def test_an_imported_model_is_used_without_a_network(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, IMAGENET)
    assert imagenet_version(load_settings(home=tmp_path)) == "imagenet:1"


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"copy it to {tmp_path}/downloads, and run the same command again"):
        imagenet_version(load_settings(home=tmp_path))
