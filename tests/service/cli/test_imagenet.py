"""`fc7 train --from imagenet`: the model is imported once; without a network, the error says how to do it by hand."""

from __future__ import annotations

import shlex
import socket
from functools import partial
from pathlib import Path

import pytest
import torch

from model_store.store import ModelStore
from model_store.training.errors import DownloadError
from model_store.training.importers import torchvision
from model_store.training.importers.download import PUBLIC_FILES, PublicFile
from service.cli.training.imports import IMAGENET, imagenet_version
from service.settings import load_settings
from tests.service.cli.helpers import invoke
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.weight_files import SMALL_OWT, torchvision_alexnet


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
def test_without_a_network_the_commands_of_the_error_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my home"
    with pytest.raises(DownloadError) as caught:
        imagenet_version(load_settings(home=home))
    commands = [shlex.split(line, comments=True) for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert commands[0] == ["curl", "-LO", PUBLIC_FILES["torchvision"]["alexnet"].url]
    assert commands[1] == ["sha256sum", "net.pth"]
    assert "0" * 64 in str(caught.value)
    assert commands[2][:4] == ["fc7", "import", "torchvision", "net.pth"]
    monkeypatch.chdir(tmp_path)
    small = partial(torchvision.read_torchvision, layers=SMALL_OWT)
    monkeypatch.setattr(torchvision, "read_torchvision", small)
    torch.save(torchvision_alexnet(1000, (8, 12, 8, 8, 6), 24).state_dict(), "net.pth")
    done = invoke(tmp_path / "other", *commands[2][1:])
    assert done.exit_code == 0, done.output
    assert "fc7 models activate imagenet:1" in done.stderr
    assert imagenet_version(load_settings(home=home)) == "imagenet:1"
    assert ModelStore(home).active() is None


@pytest.mark.usefixtures("no_network")
def test_another_file_under_its_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "net.pth").write_bytes(b"x")
    with pytest.raises(DownloadError, match=r"net\.pth is another file: its sha256 is 2d711642b726b044"):
        imagenet_version(load_settings(home=tmp_path))
