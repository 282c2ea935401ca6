"""Recipes: built-in ones, files, settings, and invalid values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from model_store.errors import RecipeError
from model_store.training.nets.alexnet import LocalResponseNorm, Norm
from model_store.training.recipe import Normalisation, Recipe, load_recipe, recipe_names


def test_the_built_in_recipes_are_valid() -> None:
    assert {"paper", "small"} <= set(recipe_names())
    assert all(load_recipe(name).name == name for name in recipe_names())


def test_the_paper_recipe_has_the_values_of_the_paper() -> None:
    recipe = load_recipe("paper")
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (128, 0.9, 0.0005)
    assert (recipe.learning_rate, recipe.schedule, recipe.drops, recipe.epochs) == (0.01, "plateau", 3, 90)
    assert (recipe.dropout, recipe.initialisation, recipe.input_scale, recipe.update) == (
        "paper",
        "paper",
        1.0,
        "paper",
    )
    assert recipe.architecture(1000).layers[0].name == "conv1"


def test_the_original_recipe_differs_from_the_paper_as_the_released_code_does() -> None:
    paper, original = load_recipe("paper").to_dict(), load_recipe("original").to_dict()
    assert {key: value for key, value in original.items() if paper[key] != value} == {
        "name": "original",
        "initialisation": "original",
        "normalisation": "original",
        "decay_biases": False,
        "bias_rate_factor": 2.0,
        "noise_shrinks": True,
        "noise_off_below": 0.005,
    }


@pytest.mark.parametrize(
    ("normalisation", "towers", "alpha"), [("paper", 1, 1e-4), ("towers", 2, 1e-4), ("original", 2, 2e-5)]
)
def test_each_normalization_sums_over_its_maps(normalisation: Normalisation, towers: int, alpha: float) -> None:
    norms = [layer for layer in Recipe(normalisation=normalisation).architecture(3).layers if isinstance(layer, Norm)]
    assert [(norm.towers, norm.size, norm.k) for norm in norms] == [(towers, 5, 2.0)] * 2
    assert [norm.alpha for norm in norms] == pytest.approx([alpha] * 2)
    x = torch.rand(2, 96, 3, 3, generator=torch.Generator().manual_seed(0)) * 200
    # torch divides alpha by the size.
    expected = [functional.local_response_norm(half, 5, 5 * alpha, 0.75, 2.0) for half in x.chunk(towers, 1)]
    module = LocalResponseNorm(96, alpha=norms[0].alpha, towers=norms[0].towers)
    torch.testing.assert_close(module(x), torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


def test_settings_are_converted_to_the_type_of_the_key() -> None:
    recipe = load_recipe("small").with_settings(["epochs=3", "learning_rate=1", "flip=false", "schedule=constant"])
    assert (recipe.epochs, recipe.learning_rate, recipe.flip, recipe.schedule) == (3, 1.0, False, "constant")
    assert isinstance(recipe.learning_rate, float)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", r"Unknown key 'epoch'.*epochs, epoch_images"),
        ("epochs=0", r"epochs=0 .*from 1 to 10000"),
        ("epochs=2.5", r"epochs=2.5 .*whole number"),
        ("momentum=1.5", r"momentum=1.5 .*from 0 to 0.9999"),
        ("learning_rate=nan", r"learning_rate=nan"),
        ("dropout=half", r"dropout='half' .*paper, inverted, none"),
        ("flip=1", r"flip=1 .*true or false"),
        ("batch_size=many", r"batch_size='many' .*whole number"),
        ("epochs", r"key=value.*'epochs'"),
    ],
)
def test_the_error_for_an_invalid_setting_lists_the_valid_values(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("small").with_settings([setting])


def test_a_recipe_is_loaded_from_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('epochs = 2\nschedule = "constant"\n')
    assert load_recipe(str(file)) == Recipe(name="mine", epochs=2, schedule="constant")


@pytest.mark.parametrize(
    ("text", "message"),
    [("epochs = [", "not valid TOML"), ("speed = 3", "Unknown key 'speed'"), ("width = -1", "width=-1")],
)
def test_an_invalid_recipe_file_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(file))


def test_the_error_for_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'big'.*paper.*small"):
        load_recipe("big")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "missing.toml"))


def test_a_recipe_round_trips_through_a_dict() -> None:
    recipe = load_recipe("small").with_settings(["epochs=3"])
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("setting", ["label_smoothing=1", "mixup=-0.1", "reference_batch=-1", "schedule=linear"])
def test_options_out_of_range_are_rejected(setting: str) -> None:
    with pytest.raises(RecipeError, match=setting.partition("=")[0]):
        Recipe().with_settings([setting])
