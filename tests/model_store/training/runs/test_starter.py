"""The starter: nets of the recipe small start with its convolutions, and others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from model_store.training.distributed.data_parallel import initialise_net
from model_store.training.nets.alexnet import AlexNet
from model_store.training.recipe import Recipe, load_recipe
from model_store.training.runs.fine_tuning import Parent
from model_store.training.runs.run import RunInfo, read_info
from model_store.training.runs.starter import load_starter
from tests.support.training.run_folder import CLASSES, small_architecture, small_net, write_run

CONVOLUTIONS = [f"conv{number}.weight" for number in range(1, 6)]


def initial(info: RunInfo, recipe: Recipe, parent: Parent | None = None) -> dict[str, torch.Tensor]:
    """Return the initial weights of a run with this recipe."""
    net = AlexNet(recipe.architecture(len(CLASSES)))
    initialise_net(net, replace(info, recipe=recipe), parent)
    return net.state_dict()


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> RunInfo:
    return read_info(write_run(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize(("recipe", "starts"), [("small", True), ("paper", False), ("original", False)])
def test_only_the_recipe_small_starts_from_the_starter(info: RunInfo, recipe: str, starts: bool) -> None:
    chosen = load_recipe(recipe)
    weights, without = initial(info, chosen), initial(info, replace(chosen, starter=False))
    assert [not torch.equal(weights[name], without[name]) for name in CONVOLUTIONS] == [starts] * 5
    assert torch.equal(weights["fc6.weight"], without["fc6.weight"])


def test_the_maps_do_not_depend_on_the_input_scale() -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 60
    maps = []
    for scale in (1.0, 1 / 64):
        net = AlexNet(replace(load_recipe("small"), input_scale=scale).architecture(3))
        assert load_starter(net)
        with torch.no_grad():
            maps.append(cast(nn.Module, net.conv1)(images * scale))
    assert torch.allclose(maps[0], maps[1], rtol=1e-3, atol=1e-3)


def test_a_net_with_other_convolutions_keeps_its_random_weights() -> None:
    net = small_net(small_architecture())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not load_starter(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
