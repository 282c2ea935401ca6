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


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home with a run, an active version, and an index of its images."""
    home = tmp_path / "home"
    publish_tiny_model(home, classes=("blue", "green", "red"))
    write_pictures(tmp_path / "data", images=2)
    write_pictures(tmp_path / "data", "train", images=2)
    write_run(home, tmp_path / "data")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "data", "data")
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(tmp_path / "image.png")
    assert invoke(home, "index", "build", tmp_path / "data" / "val", FC7_DEVICE="cpu").exit_code == 0
    return home


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
    home: Path, tmp_path: Path, command: str, device: str
) -> None:
    before = files_of(tmp_path)
    words = command.format(data=tmp_path / "data", image=tmp_path / "image.png").split()
    refused = invoke(home, *words, FC7_DEVICE=device)
    assert isinstance(refused.exception, DeviceUnavailableError), refused.output
    assert f"The device {device} was requested and cannot be used" in str(refused.exception)
    assert "set FC7_DEVICE to cpu or auto" in str(refused.exception)
    assert files_of(tmp_path) == before


def test_the_message_and_the_exit_code(home: Path, tmp_path: Path) -> None:
    refused = call("classify", tmp_path / "image.png", FC7_HOME=str(home), FC7_DEVICE="cuda")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: The device cuda was requested and cannot be used (")


def test_the_demo_is_refused(tmp_path: Path) -> None:
    refused = invoke(tmp_path / "home", "demo", FC7_DEVICE="cuda")
    assert isinstance(refused.exception, DeviceUnavailableError)
    assert not (tmp_path / "home").exists()
