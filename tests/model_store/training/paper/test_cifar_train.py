"""The CIFAR-10 nets layer by layer, and one curve: rule, crops, repeatability, and going on after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.errors import CheckpointError
from model_store.training.nets.alexnet import LocalResponseNorm
from model_store.training.paper.cifar import train as cifar_train
from model_store.training.paper.cifar.data import CifarData
from model_store.training.paper.cifar.experiments import NEURONS
from model_store.training.paper.cifar.nets import CifarNet, LocallyConnected, NetName, initialise, table
from model_store.training.paper.cifar.train import Plan, Trainer, crops, epochs_to, mean_image, sample
from tests.support.cifar import small_cifar


def outputs(net: CifarNet, x: Tensor) -> dict[str, Tensor]:
    """Return what each layer puts out."""
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
def test_shapes_and_parameters(name: NetName, size: int, shapes: dict[str, tuple[int, int]], parameters: int) -> None:
    net = CifarNet(name, size=size)
    found = outputs(net, torch.zeros(2, 3, size, size))
    assert {layer: (found[layer].shape[1], found[layer].shape[2]) for layer in shapes} == shapes
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(value.numel() for value in net.parameters()) == parameters


def test_pooling_rounds_up_and_averages_what_lies_inside() -> None:
    x = torch.arange(25.0).view(1, 1, 5, 5)[..., :4, :4]
    net = CifarNet("18pct")
    # Windows start at 0 and 2: the second has columns 2 and 3 only.
    assert net.layers.get_submodule("pool1")(x).tolist() == [[[[12.0, 13.0], [17.0, 18.0]]]]
    inside = x[0, 0, 2:, 2:].mean().item()
    assert net.layers.get_submodule("pool2")(x)[0, 0, 1, 1].item() == pytest.approx(inside)


def test_normalisation_is_the_originals_with_its_scale_divided_by_the_maps() -> None:
    net = CifarNet("11pct", norms=True)
    x = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0)) * 40
    expected = torch.empty_like(x)
    for kernel in range(64):
        near = x[:, max(0, kernel - 4) : kernel + 5]
        expected[:, kernel] = x[:, kernel] / (1 + 0.001 / 9 * (near**2).sum(1)) ** 0.75
    for name in ("norm1", "norm2"):
        torch.testing.assert_close(net.layers.get_submodule(name)(x), expected)
    # torch divides by the maps itself.
    torch.testing.assert_close(nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1)(x), expected)


@pytest.mark.parametrize("name", ["13pct", "11pct"])
def test_normalisation_comes_after_pool1_and_before_pool2_or_not_at_all(name: NetName) -> None:
    plain = [layer.name for layer in table(name).layers]
    normed = [layer.name for layer in table(name, norms=True).layers]
    assert normed[normed.index("pool1") :][:3] == ["pool1", "fire1", "norm1"]
    assert normed[normed.index("pool2") - 1] == "norm2"
    assert [layer for layer in normed if not layer.startswith("norm")] == plain
    assert not any(isinstance(module, LocalResponseNorm) for module in CifarNet(name).modules())


def test_a_net_that_the_original_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="18pct has no norms"):
        table("18pct", norms=True)
    with pytest.raises(ValueError, match="26pct"):
        table("26pct")  # type: ignore[arg-type]


def test_the_locally_connected_layer_is_a_loop_over_positions() -> None:
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


def test_the_locally_connected_layers_derivative_is_that_of_its_values() -> None:
    layer = LocallyConnected(2, 3, 3).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2)).requires_grad_()
    with torch.no_grad():
        layer.weight.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(layer, (x,))


def test_tanh_takes_the_place_of_every_relu() -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 60
    nets = {neuron: CifarNet("18pct", neuron=neuron) for neuron in NEURONS}
    for net in nets.values():
        initialise(net, torch.Generator().manual_seed(0))
    relu, tanh = (outputs(net, x) for net in nets.values())
    assert torch.equal(relu["fire1"], relu["pool1"].clamp(min=0))
    assert torch.equal(tanh["fire1"], tanh["pool1"].tanh())
    assert {"fire1", "fire2", "fire3"} <= tanh.keys()


def test_weights_begin_with_the_tables_deviations() -> None:
    net = CifarNet("11pct", norms=True)
    initialise(net, torch.Generator().manual_seed(0))
    expected = {"layers.conv1": 1e-4, "layers.conv2": 0.01, "layers.local3": 0.04, "layers.local4": 0.04, "fc10": 0.01}
    for name, deviation in expected.items():
        assert net.get_parameter(f"{name}.weight").std().item() == pytest.approx(deviation, rel=0.05), name
        assert not net.get_parameter(f"{name}.bias").any(), name


def plan(data: CifarData, **values: object) -> Plan:
    """Return a plan for the small net, other values as given."""
    return replace(Plan("18pct", 0.001, data.hash), **values)  # type: ignore[arg-type]


def test_the_update_is_the_papers_through_changes_of_the_rate(tmp_path: Path) -> None:
    data = small_cifar(train=20)  # one batch, so an epoch is one step
    wanted = plan(data, net="13pct", decay=True, drops=(1, 2), seed=2)
    trainer = Trainer(wanted, data, tmp_path)
    net = CifarNet("13pct", classes=3)
    net.load_state_dict(trainer.net.state_dict())
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    trainer.train_to(3)

    mean = data.train.pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = torch.from_numpy((data.train.pixels - mean).transpose(0, 3, 1, 2).copy())
    velocity: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for rate in (0.001, 0.0001, 0.00001):
        net.zero_grad()
        functional.cross_entropy(net(x), torch.from_numpy(data.train.labels)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, value in net.named_parameters():
                assert value.grad is not None
                own = rate * (2 if name.endswith("bias") else 1)
                decay = 0.004 if name in {"layers.local3.weight", "layers.local4.weight", "fc10.weight"} else 0
                velocity[name] = 0.9 * velocity[name] - decay * own * value - own * value.grad
                value.add_(velocity[name])
    for name, value in net.named_parameters():
        moved = trainer.net.get_parameter(name) - start[name]
        # Loose: another order of summation lets a ReLU or two near zero fall on the other side.
        assert (moved - (value - start[name])).norm() < 0.03 * moved.norm(), name


def test_figure_1_is_without_decay(tmp_path: Path) -> None:
    data = small_cifar(train=20)
    groups = Trainer(plan(data), data, tmp_path)._optimiser.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0}


@pytest.mark.parametrize("values", [{}, {"net": "11pct", "norms": True, "size": 24, "measure": "test"}])
def test_a_seed_gives_its_weights_stopped_or_not_and_another_seed_others(
    tmp_path: Path, values: dict[str, object]
) -> None:
    data = small_cifar(train=140)  # two batches

    def weights(folder: str, seed: int, *stops: int) -> Tensor:
        for stop in stops:
            trainer = Trainer(plan(data, seed=seed, **values), data, tmp_path / folder)
            trainer.train_to(stop)
        assert [epoch.number for epoch in trainer.curve.epochs] == [1, 2]
        return torch.cat([value.detach().flatten() for value in trainer.net.parameters()])

    whole = weights("whole", 1, 2)
    assert torch.equal(whole, weights("again", 1, 2))
    assert torch.equal(whole, weights("stopped", 1, 1, 2))
    assert not torch.equal(whole, weights("other", 2, 2))


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = [
        tuple(torch.randperm(50, generator=cifar_train._generator(seed, epoch)).tolist())
        for seed in range(3)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 12


def test_a_net_learns_and_stops_at_the_threshold(tmp_path: Path) -> None:
    data = small_cifar(train=48)
    told: list[int] = []
    trainer = Trainer(plan(data, rate=0.002), data, tmp_path)
    curve = trainer.train_to(60, threshold=0.25, progress=told.append)
    assert curve.epochs[-1].error <= 0.25 < curve.epochs[-2].error
    assert sum(told) == 48 * len(curve.epochs)
    assert curve.epochs[-1].error == trainer.error(data.train)
    assert trainer.error(data.test) < 0.4
    told.clear()
    assert Trainer(plan(data, rate=0.002), data, tmp_path).train_to(60, threshold=0.25, progress=told.append) == curve
    assert told == []


def test_a_rate_that_is_too_high_ends_as_diverged(tmp_path: Path) -> None:
    data = small_cifar(train=140)
    curve = Trainer(plan(data, rate=1e9), data, tmp_path).train_to(5)
    assert curve.diverged
    assert len(curve.epochs) < 5
    assert Trainer(plan(data, rate=1e9), data, tmp_path).curve == curve


def test_a_broken_file_is_refused_by_name_and_another_plan_has_another_file(tmp_path: Path) -> None:
    data = small_cifar(train=20)
    trainer = Trainer(plan(data), data, tmp_path)
    trainer.train_to(1)
    assert trainer.path.name != plan(data, seed=1).file_name() != plan(data, decay=True).file_name()
    Trainer(plan(data, rate=0.5), data, tmp_path).path.write_bytes(trainer.path.read_bytes())
    with pytest.raises(CheckpointError, match="another plan"):
        Trainer(plan(data, rate=0.5), data, tmp_path)
    trainer.path.write_bytes(trainer.path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=trainer.path.name):
        Trainer(plan(data), data, tmp_path)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.6, 0.4, 0.2], (3, 2.75)),
        ([0.6, 0.25, 0.2], (2, 2.0)),
        ([0.15], (1, pytest.approx(0.8667, abs=1e-4))),
        ([0.6, 0.2, 0.3, 0.1], (2, 1.875)),
        ([0.6, 0.26], None),
        ([], None),
    ],
)
def test_epochs_to_a_threshold(errors: list[float], expected: tuple[int, float] | None) -> None:
    assert epochs_to(errors, 0.25, start=0.9) == expected


def test_ten_views_are_corners_centre_and_mirrors() -> None:
    pixels = torch.arange(32 * 32).view(1, 32, 32, 1)
    views = crops(pixels, 24, "ten")
    corners = [int(view[0, 0, 0, 0]) for view in views[:5]]
    assert corners == [0, 8, 8 * 32, 8 * 32 + 8, 4 * 32 + 4]
    assert all(torch.equal(mirror, view.flip(2)) for view, mirror in zip(views[:5], views[5:], strict=True))
    assert torch.equal(crops(pixels, 24, "centre")[0], views[4])


def test_the_error_over_ten_views_averages_the_probabilities(tmp_path: Path) -> None:
    data = small_cifar(train=40)
    trainer = Trainer(plan(data, net="13pct", size=24), data, tmp_path)
    trainer.train_to(1)
    centre = mean_image(data.train, 24)
    with torch.no_grad():
        views = [
            (view.float() - centre).permute(0, 3, 1, 2) for view in crops(torch.from_numpy(data.test.pixels), 24, "ten")
        ]
        answers = torch.stack([trainer.net(view).softmax(1) for view in views]).mean(0).argmax(1)
    assert trainer.error(data.test, "ten") == (answers.numpy() != data.test.labels).mean()


def test_training_crops_lie_in_their_picture_and_half_are_mirrored() -> None:
    places = torch.arange(32 * 32).view(1, 32, 32, 1).expand(400, 32, 32, 1)
    found = cifar_train._training_crops(places, 24, torch.Generator().manual_seed(0))
    assert found.shape == (400, 24, 24, 1)
    left, right = found[:, 0, 0, 0], found[:, 0, -1, 0]
    mirrored = left > right
    assert 140 < int(mirrored.sum()) < 260
    first = torch.minimum(left, right)
    assert set((first // 32).tolist()) == set(range(9))
    assert set((first % 32).tolist()) == set(range(9))
    assert torch.equal(found[:, :, 0, 0] - found[:, :1, 0, 0], (torch.arange(24) * 32).expand(400, 24))
    assert torch.equal((left - right).abs(), torch.full((400,), 23))


def test_the_mean_is_the_centre_of_the_mean_picture() -> None:
    data = small_cifar()
    expected = data.train.pixels.astype(np.float64).mean(0)[4:28, 4:28]
    np.testing.assert_allclose(mean_image(data.train, 24).numpy(), expected, rtol=1e-6)


def test_the_sample_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_cifar()
    assert sample(data.train) is data.train
    monkeypatch.setattr(cifar_train, "SAMPLE", 20)
    one, two = sample(data.train), sample(data.train)
    assert len(one) == 20
    assert np.array_equal(one.pixels, two.pixels)
    assert len({picture.tobytes() for picture in one.pixels}) == 20
