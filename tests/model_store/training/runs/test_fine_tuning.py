"""Fine-tuning: a net that starts from a run or a version gives the outputs of its parent, and records it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model_store.errors import CheckpointError, ModelNotFoundError, RecipeError
from model_store.store import ModelStore
from model_store.training.export.publish import export_run
from model_store.training.nets.alexnet import AlexNet, initialise
from model_store.training.parents import find_parent
from model_store.training.recipe import Recipe
from model_store.training.runs.fine_tuning import Parent, child_architecture, load_parent_weights
from model_store.training.runs.run import load_run
from service.cli.main import app
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.class_folders import write_class_folders
from tests.support.training.run_folder import CLASSES, small_architecture, small_net, write_pictures, write_run

X = torch.from_numpy(np.random.default_rng(0).normal(0, 60, (3, 3, 224, 224)).astype(np.float32))
FORMS = [("paper", 1 / 64), ("inverted", 1.0), ("paper", 1.0), ("inverted", 1 / 64)]


def logits(net: AlexNet) -> torch.Tensor:
    with torch.no_grad():
        return net.eval().forward_both(X)[0]


def child(parent: Parent, recipe: Recipe, classes: tuple[str, ...]) -> AlexNet:
    net = AlexNet(child_architecture(parent, recipe, len(classes)))
    initialise(net, recipe.initialisation, torch.Generator().manual_seed(5))
    load_parent_weights(net, parent, classes)
    return net


@pytest.mark.parametrize(("dropout", "scale"), FORMS)
@pytest.mark.parametrize(("own_dropout", "own_scale"), FORMS[1:3])
def test_a_fine_tuned_net_starts_with_the_outputs_of_its_parent_for_any_dropout_and_scale(
    dropout: str, scale: float, own_dropout: str, own_scale: float
) -> None:
    net = small_net(small_architecture(dropout, scale))  # type: ignore[arg-type]
    parent = Parent("parent", net.architecture, CLASSES, net.state_dict())
    recipe = Recipe(dropout=own_dropout, input_scale=own_scale)  # type: ignore[arg-type]
    expected = logits(net)
    assert torch.allclose(logits(child(parent, recipe, CLASSES)), expected, rtol=1e-4, atol=1e-4)
    turned = CLASSES[::-1]
    assert torch.allclose(logits(child(parent, recipe, turned)), expected.flip(1), rtol=1e-4, atol=1e-4)


def test_different_classes_get_a_new_fc8_and_keep_the_other_layers() -> None:
    net = small_net(small_architecture())
    parent = Parent("parent", net.architecture, CLASSES, net.state_dict())
    recipe = Recipe(input_scale=1 / 64)
    fresh = AlexNet(child_architecture(parent, recipe, 5))
    initialise(fresh, "he", torch.Generator().manual_seed(5))
    drawn = fresh.fc8.weight.detach().clone()
    assert not load_parent_weights(fresh, parent, ("a", "b", "c", "d", "e"))
    assert torch.equal(fresh.fc8.weight, drawn)
    assert torch.equal(fresh.get_parameter("fc7.weight"), net.get_parameter("fc7.weight"))
    same_number = child(parent, recipe, ("blue", "green", "white"))  # the same number of classes, but different ones
    assert not torch.equal(same_number.fc8.weight, net.fc8.weight)


@pytest.mark.parametrize(("dropout", "scale"), [("paper", 1 / 64), ("inverted", 0.3)])
def test_a_version_has_the_weights_of_its_run(tmp_path: Path, dropout: str, scale: float) -> None:
    write_pictures(tmp_path / "data", images=2)
    run = load_run(write_run(tmp_path, tmp_path / "data", small_architecture(dropout, scale)))  # type: ignore[arg-type]
    export_run(run, ModelStore(tmp_path))
    by_version, by_run = find_parent(tmp_path, "small:1"), find_parent(tmp_path, "small")
    assert (by_version.name, by_run.name) == ("small:1", run.path.name)
    assert by_version.architecture == by_run.architecture == run.info.architecture
    assert by_version.classes == by_run.classes == CLASSES
    assert by_version.weights.keys() == by_run.weights.keys()
    for name, weight in by_run.weights.items():
        assert torch.equal(by_version.weights[name], weight), name


def test_a_missing_parent_or_one_without_an_architecture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run 'solar'"):
        find_parent(tmp_path, "solar")
    publish_tiny_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="tiny:2"):
        find_parent(tmp_path, "tiny:2")
    for reference in ("tiny:1", "tiny"):
        with pytest.raises(CheckpointError, match="tiny:1 does not describe its architecture"):
            find_parent(tmp_path, reference)


def test_a_recipe_for_other_layers_than_the_parents_is_rejected() -> None:
    net = small_net(small_architecture())
    parent = Parent("solar:1", net.architecture, CLASSES, net.state_dict())
    with pytest.raises(RecipeError, match="solar:1 are not those of variant=no-lrn"):
        child_architecture(parent, Recipe(variant="no-lrn"), 3)
    no_lrn = replace(parent, architecture=Recipe(variant="no-lrn", width=1 / 32).architecture(3))
    assert child_architecture(no_lrn, Recipe(variant="no-lrn", width=1 / 32), 4).classes == 4


def test_fc7_train_records_the_parent_in_the_run_and_the_published_version(tmp_path: Path) -> None:
    write_pictures(tmp_path / "old", images=1)
    old = write_run(tmp_path, tmp_path / "old")
    data = write_class_folders(tmp_path / "new", train=2, val=1)
    home = ["--home", str(tmp_path)]
    recipe = ["--set", "epochs=1", "--set", "batch_size=6", "--set", "learning_rate=0", "--set", "precision=float32"]
    done = CliRunner().invoke(app, ["train", "--data", str(data), "--name", "tuned", "--from", "small", *recipe, *home])
    assert done.exit_code == 0, done.output
    assert "fc8 too" in done.output
    run = load_run(sorted((tmp_path / "runs").glob("tuned-*"))[0])
    assert run.info.parent == old.name
    before, after = load_run(old).network, run.network
    assert torch.allclose(
        logits(after), logits(before), rtol=1e-4, atol=1e-4
    )  # a rate of 0 does not change the weights
    artifact = export_run(run, ModelStore(tmp_path)).artifact
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["recipe"]["parent"] == old.name
    refused = CliRunner().invoke(app, ["train", "--resume", "--name", "tuned", "--from", "small", *home])
    assert isinstance(refused.exception, CheckpointError)
    assert "either --resume or --from" in str(refused.exception)
