"""The CIFAR-10 nets, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.training.nets.alexnet import LocalResponseNorm
from model_store.training.paper.cifar.experiments import NEURONS
from model_store.training.paper.cifar.nets import CifarNet, LocallyConnected, NetName, initialize


def outputs(net: CifarNet, x: Tensor) -> dict[str, Tensor]:
    """Return the output of each layer."""
    found = {}
    for name, module in net.layers.named_children():
        x = module(x)
        found[name] = x.clone()
    return found


@pytest.mark.parametrize(
    ("name", "size", "shapes", "parameters"),
    [
        ("18pct", 32, {"pool1": (32, 16), "pool2": (32, 8), "pool3": (64, 4)}, 2_432 + 25_632 + 51_264 + 10_250),
        (
            "13pct",
            24,
            {"pool1": (64, 12), "pool2": (64, 6), "local3": (32, 6), "local4": (32, 6)},
            4_864 + 102_464 + 36 * 577 * 32 + 36 * 289 * 32 + 11_530,
        ),
        (
            "11pct",
            32,
            {"pool1": (64, 16), "pool2": (64, 8), "local3": (64, 8), "local4": (32, 8)},
            4_864 + 102_464 + 64 * 577 * 64 + 64 * 577 * 32 + 20_490,
        ),
    ],
)
def test_the_nets_have_the_expected_shapes_and_parameters(
    name: NetName, size: int, shapes: dict[str, tuple[int, int]], parameters: int
) -> None:
    net = CifarNet(name, size=size)
    found = outputs(net, torch.zeros(2, 3, size, size))
    assert {layer: (found[layer].shape[1], found[layer].shape[2]) for layer in shapes} == shapes
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(value.numel() for value in net.parameters()) == parameters


def test_pooling_rounds_up_and_averages_pixels_inside_the_image() -> None:
    x = torch.arange(25.0).view(1, 1, 5, 5)[..., :4, :4]
    net = CifarNet("18pct")
    # Windows start at 0 and 2, and the second one has only columns 2 and 3.
    assert net.layers.get_submodule("pool1")(x).tolist() == [[[[12.0, 13.0], [17.0, 18.0]]]]
    inside = x[0, 0, 2:, 2:].mean().item()
    assert net.layers.get_submodule("pool2")(x)[0, 0, 1, 1].item() == pytest.approx(inside)


def test_normalization_matches_the_original_with_its_scale_divided_by_the_maps() -> None:
    net = CifarNet("11pct", norms=True)
    x = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0)) * 40
    expected = torch.empty_like(x)
    for kernel in range(64):
        neighbors = x[:, max(0, kernel - 4) : kernel + 5]
        expected[:, kernel] = x[:, kernel] / (1 + 0.001 / 9 * (neighbors**2).sum(1)) ** 0.75
    for name in ("norm1", "norm2"):
        torch.testing.assert_close(net.layers.get_submodule(name)(x), expected)
    # torch divides by the maps.
    torch.testing.assert_close(nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1)(x), expected)


@pytest.mark.parametrize("name", ["13pct", "11pct"])
def test_normalization_comes_after_pool1_and_before_pool2_or_is_absent(name: NetName) -> None:
    plain = [layer for layer, _ in CifarNet(name).layers.named_children()]
    with_norms = [layer for layer, _ in CifarNet(name, norms=True).layers.named_children()]
    assert with_norms[with_norms.index("pool1") :][:3] == ["pool1", "act1", "norm1"]
    assert with_norms[with_norms.index("pool2") - 1] == "norm2"
    assert [layer for layer in with_norms if not layer.startswith("norm")] == plain
    assert not any(isinstance(module, LocalResponseNorm) for module in CifarNet(name).modules())


def test_unknown_nets_are_rejected() -> None:
    with pytest.raises(ValueError, match="18pct without norms"):
        CifarNet("18pct", norms=True)
    with pytest.raises(ValueError, match="26pct"):
        CifarNet("26pct")  # type: ignore[arg-type]


def test_the_locally_connected_layer_matches_a_loop_over_positions() -> None:
    random = torch.Generator().manual_seed(1)
    layer = LocallyConnected(3, 5, 4)
    with torch.no_grad():
        layer.weight.normal_(0, 1, generator=random)
        layer.bias.normal_(0, 1, generator=random)
    x = torch.randn(2, 3, 4, 4, generator=random)
    padded = functional.pad(x, (1, 1, 1, 1))
    expected = torch.empty(2, 5, 4, 4)
    for row in range(4):
        for column in range(4):
            kernels = layer.weight[row * 4 + column].view(3, 3, 3, 5)  # row, column, channel, kernel
            window = padded[:, :, row : row + 3, column : column + 3]
            sums = torch.einsum("ncij,ijck->nk", window, kernels)
            expected[:, :, row, column] = sums + layer.bias[row * 4 + column]
    torch.testing.assert_close(layer(x), expected)


def test_the_gradient_of_the_locally_connected_layer_is_correct() -> None:
    layer = LocallyConnected(2, 3, 3).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2)).requires_grad_()
    with torch.no_grad():
        layer.weight.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(layer, (x,))


def test_tanh_replaces_every_relu() -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 60
    nets = {neuron: CifarNet("18pct", neuron=neuron) for neuron in NEURONS}
    for net in nets.values():
        initialize(net, torch.Generator().manual_seed(0))
    relu, tanh = (outputs(net, x) for net in nets.values())
    assert torch.equal(relu["act1"], relu["pool1"].clamp(min=0))
    assert torch.equal(tanh["act1"], tanh["pool1"].tanh())
    assert {"act1", "act2", "act3"} <= tanh.keys()


def test_weights_start_with_the_deviations_of_the_table() -> None:
    net = CifarNet("11pct", norms=True)
    initialize(net, torch.Generator().manual_seed(0))
    expected = {"layers.conv1": 1e-4, "layers.conv2": 0.01, "layers.local3": 0.04, "layers.local4": 0.04, "fc10": 0.01}
    for name, deviation in expected.items():
        assert net.get_parameter(f"{name}.weight").std().item() == pytest.approx(deviation, rel=0.05), name
        assert not net.get_parameter(f"{name}.bias").any(), name
