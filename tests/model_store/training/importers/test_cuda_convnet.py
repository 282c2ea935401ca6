"""Checkpoints of cuda-convnet: joined towers, the outputs of the file's own layers, and what is rejected."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.training.importers.cuda_convnet import read_cuda_convnet
from model_store.training.importers.torchvision import read_torchvision
from model_store.training.nets.alexnet import AlexNet, Conv, Layer, Norm
from tests.model_store.training.importers.helpers import (
    assert_outputs_match,
    error_message,
    import_by_command,
    published_outputs,
    served_outputs,
)
from tests.support.training import cuda_convnet_files as files
from tests.support.training.weight_files import random_images

IMAGENET_RGB = np.array((122.67891434, 116.66876762, 104.00698793), np.float32)[:, None, None]


@pytest.fixture(scope="module")
def net() -> files.Net:
    return files.Net()


@pytest.mark.parametrize(("towers", "keep", "listed"), [("ab", 0.5, False), ("a", 0.5, True), ("ab", 0.8, False)])
def test_outputs_match_those_of_the_files_layers(tmp_path: Path, towers: str, keep: float, listed: bool) -> None:
    written = files.Net(towers=towers, keep=keep)
    read = read_cuda_convnet(written.write(tmp_path / "90.1000", listed=listed))
    count = len(towers)
    convolutions = [layer for layer in read.architecture.layers if isinstance(layer, Conv)]
    assert [layer.towers for layer in convolutions] == [1, count, 1, count, count]
    assert [layer.kernels for layer in convolutions] == [8, 12, 8, 8, 6]
    assert convolutions[0].edge == 3, "as in the original net, whose last windows pass the edge"
    assert read.architecture.dropout == ("paper" if keep == 0.5 else "none")
    rgb = random_images(3)
    expected = files.outputs(written.layers, IMAGENET_RGB, rgb)
    assert_outputs_match(published_outputs(read, tmp_path / "home", rgb), expected)


def test_the_details_of_the_original_net_make_a_difference(tmp_path: Path, net: files.Net) -> None:
    read = read_cuda_convnet(net.write(tmp_path / "1.1"))
    image = torch.from_numpy(random_images(1).transpose(0, 3, 1, 2).astype(np.float32)) - 110

    def logits(change: Callable[[Layer], Layer]) -> torch.Tensor:
        table = tuple(change(layer) for layer in read.architecture.layers)
        built = AlexNet(replace(read.architecture, layers=table)).eval()
        built.load_state_dict(dict(read.weights))
        found: torch.Tensor = built(image)
        return found.detach()

    own = logits(lambda layer: layer)
    for changes in ({"within": False}, {"towers": 1}):
        other = logits(lambda layer, changes=changes: replace(layer, **changes) if isinstance(layer, Norm) else layer)  # type: ignore[misc]
        assert not torch.allclose(own, other, rtol=1e-3), changes
    early = logits(lambda layer: replace(layer, relu=True) if isinstance(layer, Conv) else layer)
    assert not torch.allclose(own, early, rtol=1e-3), "the sum of the first normalization includes negative values"


def test_the_mean_image_of_the_training_data_is_subtracted(tmp_path: Path, net: files.Net) -> None:
    mean = np.random.default_rng(1).uniform(50, 200, (3, 256, 256)).astype(np.float32)
    meta = {"data_mean": mean.reshape(-1, 1), "label_names": ["a"], "num_vis": 3 * 256**2}
    path = net.write(tmp_path / "1.1")
    rgb = random_images(2)
    expected = files.outputs(net.layers, mean, rgb)
    for number, content in enumerate((files.python2_pickle(meta), files.python3_pickle(meta))):
        (tmp_path / "batches.meta").write_bytes(content)
        read = read_cuda_convnet(path, mean=str(tmp_path / "batches.meta"))
        assert "the mean image of batches.meta" in read.preprocessing
        assert_outputs_match(published_outputs(read, tmp_path / f"home{number}", rgb), expected)


def test_the_command_imports_the_newest_checkpoint_of_a_folder(
    tmp_path: Path, net: files.Net, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ConvNet__2012-09-13"
    folder.mkdir()
    files.Net(seed=9).write(folder / "9.1300")
    with zipfile.ZipFile(folder / "10.1", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", files.python2_pickle(net.checkpoint()))
    artifact = import_by_command(tmp_path / "home", "cuda-convnet", folder, "--name", "original")
    assert "original:1" in capsys.readouterr().out
    rgb = random_images(2)
    assert_outputs_match(served_outputs(artifact, rgb), files.outputs(net.layers, IMAGENET_RGB, rgb))


def test_nothing_in_the_file_is_called(tmp_path: Path, net: files.Net) -> None:
    created = tmp_path / "created"
    call = b"cposix\nmkdir\n(" + files.python2_pickle(str(created))[2:-1] + b"tR"
    whole = files.python2_pickle(net.checkpoint())
    path = tmp_path / "1.1"
    path.write_bytes(whole[:-2] + files.python2_pickle("x")[2:-1] + call + b"u.")  # one more entry, beside "op"
    read_cuda_convnet(path)
    path.write_bytes(b"\x80\x02" + call + b".")
    assert "not a checkpoint of cuda-convnet" in error_message(read_cuda_convnet, path)
    assert not created.exists()


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        ("rnorm1a", {"type": "cnorm"}, "layers of different types"),
        ("conv3a", {"randSparse": [True, True]}, "random connections"),
        ("conv1a", {"sharedBiases": False}, "a bias for each position"),
        ("conv2a", {"stride": [2]}, "different values of stride"),
        ("conv1a", {"imgSize": [128]}, "different values of imgSize"),
        ("pool1a", {"pool": "avg"}, "different values of pool"),
        ("cnorm2a", {"size": 4}, "different values of size"),
        ("conv4a", {"weights": [[1, 2]]}, "weights of conv4a is not an array of numbers"),
        ("conv5b", {"weights": []}, "the layer conv5a, conv5b is incomplete"),
        ("fc1000", {"biases": np.array([[np.nan] * 7], np.float32)}, "not finite"),
        ("conv4b", {"biases": np.zeros((5, 1), np.float32)}, "has the shape"),
        ("fc0a_neuron", {"neuron": {"type": "tanh"}}, "a layer of the type neuron"),
    ],
)
def test_what_fc7_cannot_compute_is_rejected(tmp_path: Path, layer: str, changes: dict[str, Any], message: str) -> None:
    changed = files.Net()
    changed.layers[layer] |= changes
    assert message in error_message(read_cuda_convnet, changed.write(tmp_path / "1.1"))


def test_a_truncated_file_is_rejected_wherever_it_ends(tmp_path: Path, net: files.Net) -> None:
    path = net.write(tmp_path / "1.1")
    data = path.read_bytes()
    for end in (1, 2, 30, 500, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        error_message(read_cuda_convnet, path)
    (tmp_path / "empty").mkdir()
    assert "has no checkpoints" in error_message(read_cuda_convnet, tmp_path / "empty")


def test_the_error_of_another_importer_names_the_command(tmp_path: Path, net: files.Net) -> None:
    path = net.write(tmp_path / "1.1")
    assert f"To import it, run: fc7 import cuda-convnet {path}" in error_message(read_torchvision, path)
    with zipfile.ZipFile(tmp_path / "2.2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", path.read_bytes())
    assert "fc7 import cuda-convnet" in error_message(read_torchvision, tmp_path / "2.2")
    torch.save({"a": torch.zeros(2)}, tmp_path / "net.pth")
    assert "not a checkpoint of cuda-convnet" in error_message(read_cuda_convnet, tmp_path / "net.pth")
