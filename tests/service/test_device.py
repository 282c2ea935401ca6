"""FC7_DEVICE=cuda without a GPU: every command that runs a model refuses, before it writes anything."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.errors import DeviceUnavailableError
from model_store.runtime.onnxruntime_engine import has_cuda
from tests.service.cli.helpers import call, invoke
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.run_folder import write_pictures, write_run

pytestmark = pytest.mark.skipif(has_cuda(), reason="ONNX Runtime has a CUDA provider")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that no test changes: images, and a home with a run, an active version and an index of them."""
    folder = tmp_path_factory.mktemp("device")
    home = folder / "home"
    publish_tiny_model(home, classes=("blue", "green", "red"))
    write_pictures(folder / "data", images=2)
    write_pictures(folder / "data", "train", images=2)
    write_run(home, folder / "data")
    with tarfile.open(folder / "data.tar", "w") as archive:
        archive.add(folder / "data", "data")
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(folder / "image.png")
    assert invoke(home, "index", "build", folder / "data" / "val", FC7_DEVICE="cpu").exit_code == 0
    return folder


def files_of(folder: Path) -> dict[str, int]:
    """Return the modification times of all files and folders, except SQLite's temporary ones."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize(
    "command",
    [
        "index build {data}",
        "index build {data}.tar",
        "index build {data} --rebuild",
        "index reembed",
        "search {image}",
        "classify {image}",
        "classify {data} --out {data}.jsonl",
        "embed {image}",
        "train {data} --name other",
        "train {data}.tar --name other",
        "train --resume --name small",
        "evaluate small",
        "evaluate tiny:1 --data {data}",
        "evaluate tiny:1 --data {data}.tar",
        "models compare tiny:1 tiny:1 --data {data}",
        "data check {data} --model tiny:1",
    ],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    folder: Path, command: str, device: str
) -> None:
    before = files_of(folder)
    words = command.format(data=folder / "data", image=folder / "image.png").split()
    refused = invoke(folder / "home", *words, FC7_DEVICE=device)
    assert isinstance(refused.exception, DeviceUnavailableError), refused.output
    assert f"The device {device} was requested and cannot be used" in str(refused.exception)
    assert "set FC7_DEVICE to cpu or auto" in str(refused.exception)
    assert files_of(folder) == before


def test_the_message_and_the_exit_code(folder: Path) -> None:
    refused = call("classify", folder / "image.png", FC7_HOME=str(folder / "home"), FC7_DEVICE="cuda")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: The device cuda was requested and cannot be used (")


def test_the_demo_is_refused(tmp_path: Path) -> None:
    refused = invoke(tmp_path / "home", "demo", FC7_DEVICE="cuda")
    assert isinstance(refused.exception, DeviceUnavailableError)
    assert not (tmp_path / "home").exists()
