"""Files are recognized by their content, and an error names the command that accepts the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.training.importers.caffe import read_caffemodel
from tests.model_store.training.importers.helpers import error_message
from tests.support.training import weight_files as files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (
            b"PK\x03\x04" + bytes(50),
            "it is a PyTorch file, not a Caffe model. To import it, run: fc7 import torchvision",
        ),
        (b"\x80\x02\x8a\x0a" + bytes(50), "fc7 import torchvision"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b'name: "AlexNet"\nlayer { }\n', "a prototxt has no weights"),
        (b"\x1f\x8b" + bytes(30), "a gzip archive"),
        (bytes(100), "of an unknown kind"),
    ],
)
def test_a_file_of_another_kind_is_recognized_by_its_content(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bvlc_alexnet.caffemodel"
    path.write_bytes(content)
    assert expected in error_message(read_caffemodel, path)


def test_mean_images_onnx_models_and_pytorch_files_are_directed_to_their_commands(tmp_path: Path) -> None:
    weights = files.random_weights(files.SMALL_ALEXNET, 3)
    mean = files.write_mean(tmp_path / "mean.binaryproto", np.zeros((3, 256, 256), np.float32))
    zoo = files.write_zoo_model(tmp_path / "zoo.caffemodel", weights)
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.caffemodel")
    assert f"To import it, run: fc7 import caffe MODEL.caffemodel --mean {mean}" in error_message(read_caffemodel, mean)
    assert f"To import it, run: fc7 import onnx {zoo}" in error_message(read_caffemodel, zoo)
    saved = tmp_path / "net.caffemodel"
    assert f"To import it, run: fc7 import torchvision {saved}" in error_message(read_caffemodel, saved)


def test_a_missing_file_and_a_folder_are_rejected(tmp_path: Path) -> None:
    assert "No such file or directory" in error_message(read_caffemodel, tmp_path / "none.caffemodel")
    assert "it is a folder" in error_message(read_caffemodel, tmp_path)
