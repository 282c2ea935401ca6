"""The values that a recipe leaves open follow from the size of the data set and the time allowed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model_store.errors import RecipeError
from model_store.training.recipe import AUTO, load_recipe
from model_store.training.recipes.sizing import advice, describe, sized
from service.cli.data.commands import DEMO_SETTINGS

SMALL = load_recipe("small")


@pytest.mark.parametrize("images", [1, 20, 48, 258, 323, 1_000, 3_068, 50_000, 1_000_000])
def test_every_size_gets_enough_steps_and_no_open_value(images: int) -> None:
    recipe = sized(SMALL, images)
    assert not recipe.open_values()
    assert recipe.epochs * math.ceil(images / recipe.batch_size) >= 600
    assert recipe.epochs >= 6
    assert SMALL.completed_by(recipe) == recipe
    assert sized(recipe, images) == recipe


def test_images_are_upside_down_only_if_that_is_asked_for() -> None:
    assert not sized(SMALL, 323).flip_vertical
    assert "upside down" not in describe(sized(SMALL, 323), 323)
    assert "upside down" in describe(sized(SMALL.with_settings(DEMO_SETTINGS), 323), 323)


def test_augmentation_is_stronger_for_images_that_are_seen_more_often() -> None:
    few, some, many = (sized(SMALL, images) for images in (300, 2_000, 40_000))
    assert 0 < few.smallest_crop < some.smallest_crop < 1
    assert few.colour_jitter > some.colour_jitter > many.colour_jitter == 0
    assert few.mixup > some.mixup == many.mixup == 0
    assert many.smallest_crop == 0  # the paper's crops


def test_other_weights_are_advised_for_few_images() -> None:
    assert "--from imagenet" in str(advice(SMALL, 323))
    assert advice(SMALL, 5_000) is None
    assert advice(SMALL.with_settings(["width=0.25"]), 323) is None  # no public net has its layers


def test_values_that_the_user_sets_are_kept() -> None:
    recipe = sized(SMALL.with_settings(["epochs=3", "mixup=0", "smallest_crop=0.5", "early_stop=0"]), 300)
    assert (recipe.epochs, recipe.mixup, recipe.smallest_crop, recipe.early_stop) == (3, 0, 0.5, 0)
    paper = load_recipe("paper")
    assert sized(paper, 300) == paper


@pytest.mark.parametrize("images", [100, 300, 3_000, 50_000])
def test_the_time_allowed_is_used_and_not_exceeded(images: int) -> None:
    recipe = sized(SMALL, images, minutes=5, speed=60)
    seen = recipe.epochs * (recipe.epoch_images or images)
    assert 0.85 * 5 * 60 * 60 <= seen <= 0.95 * 5 * 60 * 60
    assert f"{recipe.epochs} epoch" in describe(recipe, images)


def test_long_times_do_not_repeat_few_images_without_end() -> None:
    assert sized(SMALL, 50, minutes=600, speed=60).epochs == 400


def test_a_time_limit_and_a_number_of_epochs_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match=r"epochs=3.*--set epochs=auto"):
        sized(replace(SMALL, epochs=3), 300, minutes=5, speed=60)
    with pytest.raises(RecipeError, match="epochs=90"):
        sized(load_recipe("paper"), 300, minutes=5, speed=60)


def test_fine_tuning_freezes_layers_and_starts_with_the_last_one() -> None:
    tuned, scratch = sized(SMALL, 300, fine_tuning=True), sized(SMALL, 300)
    assert (scratch.frozen_layers, scratch.head_share, scratch.body_rate_factor) == (0, 0, 1)
    assert (tuned.frozen_layers, tuned.head_share, tuned.body_rate_factor) == (2, 0.1, 0.2)
    assert "2 layers frozen" in describe(tuned, 300)


def test_auto_is_accepted_only_for_open_values() -> None:
    assert replace(SMALL, epochs=3).with_settings(["epochs=auto"]).epochs == AUTO
    with pytest.raises(RecipeError, match="batch_size='auto'"):
        SMALL.with_settings(["batch_size=auto"])
