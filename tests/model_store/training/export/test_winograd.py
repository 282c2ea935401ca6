"""The graph for batches computes small convolutions with fewer multiplications."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from model_store.training.export.served_graph import write_served_graph
from model_store.training.export.winograd import Filtering
from model_store.training.nets.alexnet import AlexNet, Architecture, Conv, Hidden, Pool, initialise

MEAN = np.full((256, 256, 3), 120, np.float32)


@pytest.mark.parametrize("size", [1, 3, 5, 6, 11, 13, 15])
def test_filtering_equals_a_convolution_with_zero_padding(size: int) -> None:
    random = np.random.default_rng(size)
    maps, kernels = random.standard_normal((3, size, size)), random.standard_normal((2, 3, 3, 3))
    filtering = Filtering.of(size)
    positions, tiles = filtering.positions, filtering.tiles
    assert (positions, tiles) == (7, -(-size // 5))
    tiled = np.einsum("ax,by,cxy->cab", filtering.into, filtering.into, maps)
    tiled = tiled.reshape(3, positions, tiles, positions, tiles)
    transformed = filtering.kernels(kernels, towers=1).reshape(positions, positions, 3, 2)
    product = np.einsum("citju,ijco->oitju", tiled, transformed).reshape(2, positions * tiles, positions * tiles)
    actual = np.einsum("xa,yb,oab->oxy", filtering.out, filtering.out, product)
    expected = functional.conv2d(torch.from_numpy(maps[None]), torch.from_numpy(kernels), padding=1)[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # the matrices are float32


def deep_net(*layers: Conv) -> AlexNet:
    """Return a net with the given layers on 13x13 maps, after 3x3 layers on 55x55 and 27x27 maps."""
    first = (
        Conv("conv1", 8, 11, stride=4, edge=3),
        Conv("wide", 8, 3, padding=1),
        Pool("pool1"),
        Conv("middle", 8, 3, padding=1),
        Pool("pool2"),
    )
    architecture = Architecture(3, (*first, *layers, Hidden("fc6", 16), Hidden("fc7", 32)), input_scale=1 / 64)
    net = AlexNet(architecture)
    random = torch.Generator().manual_seed(3)
    initialise(net, "he", random)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=random)
    return net.eval()


def test_the_graph_for_batches_matches_the_net_and_filters_only_small_maps(tmp_path: Path) -> None:
    net = deep_net(
        Conv("conv3", 12, 3, padding=1),
        Conv("conv4", 16, 3, padding=1, towers=2),
        Conv("strided", 12, 3, stride=2, padding=1),
        Conv("bare", 12, 3),
        Conv("conv5", 8, 3, padding=1, towers=2),
    )
    write_served_graph(net, MEAN, tmp_path)
    graph = onnx.load_model(tmp_path / "batches.onnx", load_external_data=False).graph
    convolved = {node.name.removesuffix(".linear") for node in graph.node if node.op_type == "Conv"}
    assert convolved == {"conv1", "wide", "middle", "strided", "bare"}
    locations = {tensor.name: tensor.external_data[0].value for tensor in graph.initializer if tensor.external_data}
    assert {name for name, location in locations.items() if location == "batches.bin"} == {
        f"{layer}.{part}" for layer in ("conv3", "conv4", "conv5") for part in ("into", "out", "kernels")
    }
    assert "conv3.weight" not in locations
    session = onnxruntime.InferenceSession(tmp_path / "batches.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
        probabilities, fc7 = session.run(["probabilities", "fc7"], {"pixels": pixels})
        with torch.no_grad():
            logits, features = net.forward_both(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 120)
        np.testing.assert_allclose(probabilities, logits.softmax(1).numpy(), atol=1e-5)
        np.testing.assert_allclose(fc7, features.numpy(), atol=1e-5 * float(features.max()))


def test_a_net_without_small_convolutions_has_no_graph_for_batches(tmp_path: Path) -> None:
    write_served_graph(deep_net(), MEAN, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]
