"""The net, compared with the numbers of the paper and with plain loops."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model_store.errors import CheckpointError
from model_store.training.nets.alexnet import (
    AlexNet,
    Architecture,
    Conv,
    Dropout,
    Hidden,
    LocalResponseNorm,
    Pool,
    initialise,
)

TRIAL = Architecture(5, dropout="none").scaled(1 / 16)


def random_net(architecture: Architecture, seed: int = 0) -> AlexNet:
    net = AlexNet(architecture)
    initialise(net, "he", torch.Generator().manual_seed(seed))
    return net


def test_the_numbers_of_parameters_match_the_paper() -> None:
    with torch.device("meta"):
        net = AlexNet(Architecture(1000))
    assert net.parameter_counts() == {
        "conv1": 34_944,
        "conv2": 307_456,
        "conv3": 885_120,
        "conv4": 663_936,
        "conv5": 442_624,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
        "fc8": 4_097_000,
    }
    assert sum(parameter.numel() for parameter in net.parameters()) == 60_965_224


def test_the_number_of_classes_can_be_chosen() -> None:
    assert random_net(replace(TRIAL, classes=21)).fc8.out_features == 21


def test_the_map_sizes_match_the_paper() -> None:
    sizes = {entry.name: (entry.channels, entry.size) for entry in Architecture(1000).maps()}
    assert sizes["conv1"] == (96, 55)
    assert sizes["pool1"] == (96, 27)
    assert sizes["conv2"] == (256, 27)
    assert sizes["pool2"] == (256, 13)
    assert sizes["conv3"] == (384, 13)
    assert sizes["conv4"] == (384, 13)
    assert sizes["conv5"] == (256, 13)
    assert sizes["pool5"] == (256, 6)
    assert sizes["fc7"] == (4096, 1)


def test_the_net_computes_the_map_sizes_of_the_table() -> None:
    # fc6 has as many inputs as the table gives outputs of pool5, so an incorrect table would raise an error.
    logits, features = random_net(TRIAL).eval().forward_both(torch.zeros(2, 3, 224, 224))
    assert logits.shape == (2, 5)
    assert features.shape == (2, TRIAL.maps()[-2].channels)


def plain_norm(x: Tensor, size: int, alpha: float, k: float, towers: int) -> Tensor:
    """Compute the formula of section 3.3 map by map."""
    channels = x.shape[1]
    out = []
    for i in range(channels):
        tower = range(
            i * towers // channels * (channels // towers), (i * towers // channels + 1) * (channels // towers)
        )
        near = [j for j in range(max(0, i - size // 2), min(channels - 1, i + size // 2) + 1) if j in tower]
        total = sum((x[:, j] ** 2 for j in near), torch.zeros_like(x[:, 0]))
        out.append(x[:, i] / (k + alpha * total) ** 0.75)
    return torch.stack(out, 1)


@pytest.mark.parametrize("towers", [1, 2])
def test_the_normalization_matches_the_formula_forward_and_backward(towers: int) -> None:
    random = torch.Generator().manual_seed(3)
    x = (torch.randn(2, 12, 4, 5, generator=random, dtype=torch.float64) * 60).requires_grad_()
    weight = torch.randn(2, 12, 4, 5, generator=random, dtype=torch.float64)
    norm = LocalResponseNorm(12, towers=towers).double()
    norm.band.copy_((norm.band > 0).double() * 1e-4)  # 1e-4 in float64, as in the loop
    expected = plain_norm(x, 5, 1e-4, 2.0, towers)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    trained = norm(x)
    (gradient,) = torch.autograd.grad((trained * weight).sum(), x)
    with torch.no_grad():
        served = norm(x)
    torch.testing.assert_close(trained, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(served, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


def test_torchs_module_divides_alpha_by_the_size() -> None:
    x = torch.randn(1, 96, 3, 3, generator=torch.Generator().manual_seed(0)) * 100
    torch.testing.assert_close(LocalResponseNorm(96)(x), torch.nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)(x))


def test_the_normalization_in_bfloat16_is_close_to_float32() -> None:
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0)) * 50
    rough = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = LocalResponseNorm(16)(rough)
    y.float().sum().backward()
    exact = x.clone().requires_grad_()
    LocalResponseNorm(16)(exact).sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), LocalResponseNorm(16)(x), rtol=0.03, atol=0.1)
    assert rough.grad is not None
    torch.testing.assert_close(rough.grad.float(), exact.grad, rtol=0.05, atol=0.01)


def test_a_layer_with_two_towers_equals_two_separate_layers() -> None:
    # Two towers of 4 maps each. The first layer reads the whole image, the second one only the maps of its tower.
    layers = (Conv("conv1", 8, 11, stride=16, edge=3), Conv("conv2", 6, 3, towers=2), Pool("pool5", 8, 8))
    net = random_net(Architecture(6, layers, dropout="none"))
    with torch.no_grad():
        net.fc8.weight.copy_(torch.eye(6))
        net.get_parameter("conv2.bias").uniform_(0, 1)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    first = functional.relu(
        functional.conv2d(functional.pad(x, (0, 3, 0, 3)), net.get_parameter("conv1.weight"), stride=16)
    )
    weight, bias = net.get_parameter("conv2.weight"), net.get_parameter("conv2.bias")
    assert weight.shape == (6, 4, 3, 3)
    towers = [
        functional.relu(functional.conv2d(first[:, :4], weight[:3], bias[:3])),
        functional.relu(functional.conv2d(first[:, 4:], weight[3:], bias[3:])),
    ]
    expected = functional.max_pool2d(torch.cat(towers, 1), 8, 8).flatten(1)
    torch.testing.assert_close(net(x), expected)


def test_the_input_is_padded_with_three_zeros_right_and_bottom() -> None:
    net = random_net(Architecture(2, (Conv("conv1", 1, 11, stride=4, edge=3),), dropout="none"))
    weight = net.get_parameter("conv1.weight")
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weight.abs_()
        net.fc8.weight.zero_()
        net.fc8.weight[0, 0] = 1  # the first position of the 55x55 map
        net.fc8.weight[1, 55 * 55 - 1] = 1  # the last position
    corner = (x[0, :, :11, :11] * weight[0]).sum()
    last = (x[0, :, 216:, 216:] * weight[0, :, :8, :8]).sum()
    torch.testing.assert_close(net(x)[0], torch.stack([corner, last]))


@pytest.mark.parametrize(("form", "training", "kept"), [("paper", 1.0, 0.5), ("inverted", 2.0, 1.0)])
def test_dropout_has_the_selected_form(form: Dropout, training: float, kept: float) -> None:
    layers = (Pool("pool5", 74, 74), Hidden("fc7", 500))
    net = random_net(Architecture(500, layers, dropout=form))
    with torch.no_grad():
        net.fc8.weight.copy_(torch.eye(500))
        net.get_parameter("fc7.bias").fill_(1.0)
    x = torch.zeros(1, 3, 224, 224)
    torch.manual_seed(0)
    values = net.train()(x)[0]
    assert set(values.tolist()) == {0.0, training}
    assert 0.4 < float((values == 0).float().mean()) < 0.6
    assert set(net.eval()(x)[0].tolist()) == {kept}
    assert set(net.forward_both(x)[1][0].tolist()) == {1.0}  # the features come before dropout


def test_folding_dropout_into_the_weights_does_not_change_the_outputs() -> None:
    net = random_net(replace(TRIAL, dropout="paper", input_scale=1 / 64)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1)
        net.fc8.weight.mul_(50)
    x = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 60
    folded = net.folded()
    assert folded.architecture.dropout == "none"
    for expected, answer in zip(net.forward_both(x), folded.forward_both(x), strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_the_input_scale_is_a_factor_on_the_pixels() -> None:
    net = random_net(TRIAL).eval()
    scaled = AlexNet(replace(TRIAL, input_scale=1 / 64)).eval()
    scaled.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled(x * 64), net(x), rtol=1e-4, atol=1e-5)


def test_an_architecture_round_trips_through_json() -> None:
    architecture = replace(TRIAL, dropout="inverted", input_scale=1 / 64)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [{"kind": "attention"}]},
        {"layers": [{"kind": "pool", "nam": "p"}]},
        {"dropout": "half"},
        {"classes": 0},
    ],
)
def test_an_invalid_architecture_is_rejected(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="architecture"):
        Architecture.from_dict(TRIAL.to_dict() | change)


def test_the_initializations_match_their_sources() -> None:
    wide = Architecture(50).scaled(1 / 4)
    net = AlexNet(wide)
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for scheme, expected in (("paper", 0.01), ("original", 0.03)):
        initialise(net, scheme, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        assert float(net.get_parameter("conv4.weight").detach().std()) == pytest.approx(expected, rel=0.05)
        assert float(net.get_parameter("fc6.weight").detach().std()) == pytest.approx(0.01, rel=0.05)
        for name, parameter in net.named_parameters():
            layer, _, kind = name.partition(".")
            if kind == "bias":
                assert set(parameter.tolist()) == {1.0 if layer in ones else 0.0}, name
    initialise(net, "he", torch.Generator().manual_seed(0))
    weight = net.get_parameter("conv2.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (weight.shape[1] * 25)) ** 0.5, rel=0.05)
    assert not net.get_parameter("conv2.bias").any()
