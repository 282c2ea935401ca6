"""Training of one CIFAR-10 curve: update rule, crops, reproducibility, and resuming after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model_store.errors import CheckpointError
from model_store.training.paper.cifar import train as cifar_train
from model_store.training.paper.cifar.data import CifarData
from model_store.training.paper.cifar.nets import CifarNet
from model_store.training.paper.cifar.train import Plan, Trainer, crops, epochs_to, mean_image, sample
from tests.support.training.cifar import small_cifar


def plan(data: CifarData, **values: object) -> Plan:
    """Return a plan for the 18pct net with the given changes."""
    return replace(Plan("18pct", 0.001, data.hash), **values)  # type: ignore[arg-type]


def test_updates_follow_the_paper_through_changes_of_the_learning_rate(tmp_path: Path) -> None:
    data = small_cifar(train=20)  # one batch, so each epoch is one step
    changed = plan(data, net="13pct", decay=True, drops=(1, 2), seed=2)
    trainer = Trainer(changed, data, tmp_path)
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
                own_rate = rate * (2 if name.endswith("bias") else 1)
                decay = 0.004 if name in {"layers.local3.weight", "layers.local4.weight", "fc10.weight"} else 0
                velocity[name] = 0.9 * velocity[name] - decay * own_rate * value - own_rate * value.grad
                value.add_(velocity[name])
    for name, value in net.named_parameters():
        moved = trainer.net.get_parameter(name) - start[name]
        # The tolerance is large because another order of summation can flip a few ReLUs near zero.
        assert (moved - (value - start[name])).norm() < 0.03 * moved.norm(), name


def test_figure_1_uses_no_weight_decay(tmp_path: Path) -> None:
    data = small_cifar(train=20)
    groups = Trainer(plan(data), data, tmp_path)._optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0}


@pytest.mark.parametrize("values", [{}, {"net": "11pct", "norms": True, "size": 24, "measure": "test"}])
def test_weights_depend_on_the_seed_and_not_on_resuming(tmp_path: Path, values: dict[str, object]) -> None:
    data = small_cifar(train=140)  # two batches

    def weights(folder: str, seed: int, *stops: int) -> Tensor:
        for stop in stops:
            trainer = Trainer(plan(data, seed=seed, **values), data, tmp_path / folder)
            trainer.train_to(stop)
        assert [epoch.number for epoch in trainer.curve.epochs] == [1, 2]
        return torch.cat([value.detach().flatten() for value in trainer.net.parameters()])

    uninterrupted = weights("uninterrupted", 1, 2)
    assert torch.equal(uninterrupted, weights("again", 1, 2))
    assert torch.equal(uninterrupted, weights("stopped", 1, 1, 2))
    assert not torch.equal(uninterrupted, weights("other", 2, 2))


def test_every_epoch_and_seed_has_a_different_order() -> None:
    orders = [
        tuple(torch.randperm(50, generator=cifar_train._generator(seed, epoch)).tolist())
        for seed in range(3)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 12


def test_training_learns_and_stops_at_the_threshold(tmp_path: Path) -> None:
    data = small_cifar(train=48)
    counts: list[int] = []
    trainer = Trainer(plan(data, rate=0.002), data, tmp_path)
    curve = trainer.train_to(60, threshold=0.25, progress=counts.append)
    assert curve.epochs[-1].error <= 0.25 < curve.epochs[-2].error
    assert sum(counts) == 48 * len(curve.epochs)
    assert curve.epochs[-1].error == trainer.error(data.train)
    assert trainer.error(data.test) < 0.4
    counts.clear()
    assert Trainer(plan(data, rate=0.002), data, tmp_path).train_to(60, threshold=0.25, progress=counts.append) == curve
    assert counts == []


def test_a_learning_rate_that_is_too_high_diverges(tmp_path: Path) -> None:
    data = small_cifar(train=140)
    curve = Trainer(plan(data, rate=1e9), data, tmp_path).train_to(5)
    assert curve.diverged
    assert len(curve.epochs) < 5
    assert Trainer(plan(data, rate=1e9), data, tmp_path).curve == curve


def test_a_damaged_file_is_rejected_and_each_plan_has_its_own_file(tmp_path: Path) -> None:
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
def test_epochs_to_the_threshold_are_interpolated(errors: list[float], expected: tuple[int, float] | None) -> None:
    assert epochs_to(errors, 0.25, start=0.9) == expected


def test_ten_views_are_corners_center_and_mirrors() -> None:
    pixels = torch.arange(32 * 32).view(1, 32, 32, 1)
    views = crops(pixels, 24, "ten")
    corners = [int(view[0, 0, 0, 0]) for view in views[:5]]
    assert corners == [0, 8, 8 * 32, 8 * 32 + 8, 4 * 32 + 4]
    assert all(torch.equal(mirror, view.flip(2)) for view, mirror in zip(views[:5], views[5:], strict=True))
    assert torch.equal(crops(pixels, 24, "center")[0], views[4])


def test_the_error_over_ten_views_averages_the_probabilities(tmp_path: Path) -> None:
    data = small_cifar(train=40)
    trainer = Trainer(plan(data, net="13pct", size=24), data, tmp_path)
    trainer.train_to(1)
    center = mean_image(data.train, 24)
    with torch.no_grad():
        views = [
            (view.float() - center).permute(0, 3, 1, 2) for view in crops(torch.from_numpy(data.test.pixels), 24, "ten")
        ]
        answers = torch.stack([trainer.net(view).softmax(1) for view in views]).mean(0).argmax(1)
    assert trainer.error(data.test, "ten") == (answers.numpy() != data.test.labels).mean()


def test_training_crops_are_inside_the_image_and_half_are_mirrored() -> None:
    positions = torch.arange(32 * 32).view(1, 32, 32, 1).expand(400, 32, 32, 1)
    found = cifar_train._training_crops(positions, 24, torch.Generator().manual_seed(0))
    assert found.shape == (400, 24, 24, 1)
    left, right = found[:, 0, 0, 0], found[:, 0, -1, 0]
    mirrored = left > right
    assert 140 < int(mirrored.sum()) < 260
    first = torch.minimum(left, right)
    assert set((first // 32).tolist()) == set(range(9))
    assert set((first % 32).tolist()) == set(range(9))
    assert torch.equal(found[:, :, 0, 0] - found[:, :1, 0, 0], (torch.arange(24) * 32).expand(400, 24))
    assert torch.equal((left - right).abs(), torch.full((400,), 23))


def test_the_mean_is_the_center_of_the_mean_image() -> None:
    data = small_cifar()
    expected = data.train.pixels.astype(np.float64).mean(0)[4:28, 4:28]
    np.testing.assert_allclose(mean_image(data.train, 24).numpy(), expected, rtol=1e-6)


def test_the_sample_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_cifar()
    assert sample(data.train) is data.train
    monkeypatch.setattr(cifar_train, "SAMPLE", 20)
    one, two = sample(data.train), sample(data.train)
    assert len(one) == 20
    assert np.array_equal(one.pixels, two.pixels)
    assert len({image.tobytes() for image in one.pixels}) == 20
