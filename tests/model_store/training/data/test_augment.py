"""Crops, flips, rotations and color noise: their effects, their strength, and that they are reproducible."""

from __future__ import annotations

import numpy as np
import torch

from model_store.training.data.augment import Augmenter, epoch_order
from model_store.training.recipe import Recipe
from model_store.training.statistics import Statistics

PLAIN = Recipe(flip=False, colour_noise=0)
# The value of each pixel is its row and column.
ROWS, COLUMNS = np.mgrid[0:256, 0:256].astype(np.uint8)
PIXELS = np.stack([ROWS, COLUMNS, np.zeros_like(ROWS)], -1)


def statistics(mean: float = 0.0) -> Statistics:
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype(np.float32)
    values = (
        np.array([12.0, 3.5, 1.7], np.float32) ** 2 * 100
    )  # deviations ten times those of ImageNet, for an alpha of 0.1
    return Statistics(np.full((256, 256, 3), mean, np.float32), values, vectors)


def corners(recipe: Recipe, images: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, column) of the first and the last pixel of many crops."""
    batch = Augmenter(recipe, statistics()).training_batch(np.stack([PIXELS] * images), 0, 0, 0)
    return batch[:, :2, 0, 0].numpy().astype(int), batch[:, :2, -1, -1].numpy().astype(int)


def test_crops_use_all_33_by_33_positions() -> None:
    first, last = corners(PLAIN, 600)
    assert {tuple(row) for row in last - first} == {(223, 223)}
    for axis in (0, 1):
        assert set(first[:, axis]) == set(range(33))
    assert len({tuple(row) for row in first}) > 400  # of 1,089: rows and columns are drawn independently


def test_half_of_the_images_are_flipped_horizontally() -> None:
    first, last = corners(Recipe(flip=True, colour_noise=0))
    directions = last - first
    assert set(directions[:, 0]) == {223}
    assert 0.4 < (directions[:, 1] == -223).mean() < 0.6


def test_vertical_flips_and_rotations_are_optional() -> None:
    first, last = corners(Recipe(flip=False, flip_vertical=True, colour_noise=0))
    assert {tuple(row) for row in last - first} == {(223, 223), (-223, 223)}
    first, last = corners(Recipe(flip=False, quarter_turns=True, colour_noise=0))
    assert {tuple(row) for row in last - first} == {(223, 223), (-223, 223), (223, -223), (-223, -223)}


def test_resized_crops_have_the_areas_and_ratios_that_the_recipe_allows() -> None:
    first, last = corners(Recipe(flip=False, colour_noise=0, smallest_crop=0.25))
    # The values of the corners are interpolated between pixel centers, so a side is one pixel off at most.
    heights, widths = ((last - first) * 224 / 223).T
    areas, ratios = heights * widths / 256**2, heights / widths
    assert 0.24 <= areas.min() < 0.3
    assert 0.9 < areas.max() <= 1.01
    assert 0.73 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.36
    assert first.min() >= 0
    assert last.max() <= 255
    assert len({tuple(row) for row in first}) > 100


def test_color_jitter_scales_brightness_contrast_and_saturation() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(90, 160, (200, 1, 1, 3)).repeat(256, 1).repeat(256, 2).astype(np.uint8)
    recipe = Recipe(flip=False, colour_noise=0, colour_jitter=0.3)
    batch = Augmenter(recipe, statistics()).training_batch(pixels, 0, 0, 0)
    assert torch.equal(batch.amax((2, 3)), batch.amin((2, 3)))  # images of one color stay so
    gray = np.array([0.299, 0.587, 0.114])
    changed, given = batch[:, :, 0, 0].double().numpy(), pixels[:, 0, 0].astype(float)
    brightness = (changed @ gray) / (given @ gray)
    assert 0.7 <= brightness.min() < 0.75
    assert 1.25 < brightness.max() <= 1.3 + 1e-6
    gray_images = np.full((5, 256, 256, 3), 100, np.uint8)
    gray_images[:, ::2] = 140
    batch = Augmenter(recipe, statistics()).training_batch(gray_images, 0, 0, 0)
    assert float((batch.amax(1) - batch.amin(1)).abs().max()) < 1e-3  # gray stays gray
    contrast = (batch.amax((1, 2, 3)) - batch.amin((1, 2, 3))) / (batch.mean((1, 2, 3)) * 40 / 120)
    assert 0.69 < float(contrast.min()) < float(contrast.max()) < 1.31


def test_new_options_do_not_change_the_other_draws() -> None:
    first, _ = corners(Recipe(flip=True, colour_noise=0), 50)
    jittered = Augmenter(Recipe(flip=True, colour_noise=0, colour_jitter=1e-9), statistics())
    batch = jittered.training_batch(np.stack([PIXELS] * 50), 0, 0, 0)
    np.testing.assert_allclose(batch[:, :2, 0, 0].numpy(), first, atol=1e-3)


def test_validation_uses_the_center() -> None:
    batch = Augmenter(Recipe(), statistics()).center_batch(PIXELS[None])
    assert batch.shape == (1, 3, 224, 224)
    assert batch[0, :2, 0, 0].tolist() == [16, 16]
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_the_center_of_the_mean_image_is_subtracted_from_every_crop() -> None:
    mean = PIXELS.astype(np.float32)
    augmenter = Augmenter(PLAIN, Statistics(mean, np.ones(3, np.float32), np.eye(3, dtype=np.float32)))
    batch = augmenter.training_batch(np.stack([PIXELS] * 50), 0, 0, 0)
    first, _ = corners(PLAIN, 50)
    np.testing.assert_array_equal(batch[:, :2, 0, 0].numpy(), first - 16)
    assert not augmenter.center_batch(PIXELS[None]).any()


def test_color_noise_is_scaled_by_the_square_roots_of_the_eigenvalues() -> None:
    given = statistics()
    pixels = np.zeros((100, 256, 256, 3), np.uint8)
    shifts = []
    augmenter = Augmenter(Recipe(flip=False, colour_noise=0.1), given)
    for step in range(10):
        batch = augmenter.training_batch(pixels, 0, 0, step)
        assert float((batch.amax((2, 3)) - batch.amin((2, 3))).max()) == 0  # one draw per image
        shifts.append(batch[:, :, 0, 0].numpy())
    along = np.concatenate(shifts) @ given.eigenvectors
    np.testing.assert_allclose(along.std(0), [12, 3.5, 1.7], rtol=0.1)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.12


def test_the_original_code_divides_noisy_images_by_1_1_and_can_stop_the_noise() -> None:
    pixels = np.stack([PIXELS] * 6)
    plain, original = (Augmenter(Recipe(noise_shrinks=shrinks), statistics(20)) for shrinks in (False, True))
    noisy = plain.training_batch(pixels, 0, 0, 0)
    torch.testing.assert_close(original.training_batch(pixels, 0, 0, 0), noisy / 1.1)
    assert float((noisy - plain.training_batch(pixels, 0, 0, 0, noisy=False)).abs().max()) > 1
    without = Augmenter(Recipe(colour_noise=0), statistics(20)).training_batch(pixels, 0, 0, 0)
    assert torch.equal(original.training_batch(pixels, 0, 0, 0, noisy=False), without)


def test_parts_of_a_batch_equal_the_whole_batch() -> None:
    augmenter = Augmenter(
        Recipe(flip_vertical=True, quarter_turns=True, smallest_crop=0.3, colour_jitter=0.2), statistics()
    )
    pixels = np.random.default_rng(0).integers(0, 256, (7, 256, 256, 3), dtype=np.uint8)
    whole = augmenter.training_batch(pixels, 1, 2, 3)
    parts = [
        augmenter.training_batch(pixels[at], 1, 2, 3, rows=(np.arange(7)[at], 7)) for at in (slice(0, 3), slice(3, 7))
    ]
    assert torch.equal(torch.cat(parts), whole)
    some = np.array([1, 4, 6])
    assert torch.equal(augmenter.training_batch(pixels[some], 1, 2, 3, rows=(some, 7)), whole[some])


def test_draws_depend_on_seed_epoch_and_step() -> None:
    augmenter = Augmenter(Recipe(), statistics())
    pixels = np.stack([PIXELS] * 8)
    first = augmenter.training_batch(pixels, 1, 2, 3)
    assert torch.equal(augmenter.training_batch(pixels, 1, 2, 3), first)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(augmenter.training_batch(pixels, *other), first)


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(50, 0, 1).tolist() == orders[1]
