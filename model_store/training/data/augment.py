"""Turn prepared 256x256 pixels into inputs of the net: crops, flips, rotations and color.

Guarantees: the augmentation of an image depends only on (seed, epoch, step, position in the batch). A resumed run
therefore continues exactly, and processes that share a batch produce the same inputs as a single process. The central
224x224 of the mean image is subtracted from every crop, as in the original code and in the served graph.
Out of scope: mixup (mixup.py).
References: the paper, sections 2 and 4.1; the original code for the square root in the color noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_store.image import CROP, SIZE
from model_store.training.recipe import Recipe
from model_store.training.statistics import Statistics

OFFSETS: Final = SIZE - CROP + 1  # 33 crop positions along each side
_EDGE: Final = (SIZE - CROP) // 2
_CPU: Final = torch.device("cpu")
# Makes the draws of resized crops and jitter independent of the others (seed [seed, epoch, step]). Mixup has 1.
_RESIZED: Final = 2
_RATIO: Final = 4 / 3  # largest ratio of the sides of a resized crop
_GRAY: Final = (0.299, 0.587, 0.114)


def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the training images in an epoch: a permutation, int64 [images]."""
    return np.random.default_rng([seed, epoch]).permutation(images)


class Augmenter:
    """Makes batches of inputs on a device: float32 [n, 3, 224, 224], channels last, mean subtracted.

    Pixels are given as uint8 [n, 256, 256, 3]. They are cropped and flipped as bytes, which moves less memory.
    """

    def __init__(self, recipe: Recipe, statistics: Statistics, device: torch.device = _CPU) -> None:
        self._recipe, self._device = recipe, device
        mean = statistics.mean[_EDGE : _EDGE + CROP, _EDGE : _EDGE + CROP]
        self._mean = torch.from_numpy(mean.copy()).to(device)
        # Eigenvectors times the square roots of their eigenvalues, in gray levels. The text can be read as the
        # eigenvalues themselves, but then the shifts would be a hundred times too large.
        self._components = statistics.eigenvectors * np.sqrt(statistics.eigenvalues)

    def training_batch(
        self,
        pixels: NDArray[np.uint8] | Tensor,
        seed: int,
        epoch: int,
        step: int,
        *,
        rows: tuple[NDArray[np.int64], int] | None = None,
        noisy: bool = True,
    ) -> Tensor:
        """Return augmented inputs for the `pixels` of one step of an epoch.

        rows: (the row of each image, number of rows in the batch) if `pixels` are only a part of the batch.
        noisy: whether to add the recipe's color noise.
        """
        recipe = self._recipe
        own, count = rows or (np.arange(len(pixels)), len(pixels))
        random = np.random.default_rng([seed, epoch, step])
        # All values are drawn, even those that the recipe does not use, and for the whole batch. Neither an option nor
        # the number of processes changes the other draws.
        tops, lefts = random.integers(0, OFFSETS, (2, count))[:, own]
        mirrored, upside_down = random.random((2, count))[:, own] < 0.5
        turns = random.integers(0, 4, count)[own]
        alphas = random.normal(0, 1, (count, 3))[own]
        more = np.random.default_rng([seed, epoch, step, _RESIZED])
        boxes = _random_boxes(more, count, recipe.smallest_crop or 1.0)[own]
        jitter = more.uniform(1 - recipe.colour_jitter, 1 + recipe.colour_jitter, (count, 3))[own]
        prepared = self._to_device(pixels)
        crops = self._resize(prepared, boxes) if recipe.smallest_crop else self._crop(prepared, tops, lefts)
        if recipe.flip:
            self._change(crops, mirrored, lambda images: images.flip(2))
        if recipe.flip_vertical:
            self._change(crops, upside_down, lambda images: images.flip(1))
        if recipe.quarter_turns:
            for quarters in (1, 2, 3):
                self._change(crops, turns == quarters, partial(torch.rot90, k=quarters, dims=(1, 2)))
        if recipe.colour_jitter:
            crops = self._jitter(crops, jitter)
        batch = self._subtract_mean(crops)
        if recipe.colour_noise and noisy:
            shifts = torch.from_numpy(((alphas * recipe.colour_noise) @ self._components.T).astype(np.float32))
            batch += shifts.to(self._device, non_blocking=True)[:, :, None, None]
            if recipe.noise_shrinks:
                batch /= 1 + recipe.colour_noise
        return batch

    def center_batch(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return inputs from the central crops of `pixels`, for validation."""
        return self._subtract_mean(self._to_device(pixels)[:, _EDGE : _EDGE + CROP, _EDGE : _EDGE + CROP])

    def _to_device(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        tensor = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        return tensor.to(self._device, non_blocking=True)

    def _crop(self, pixels: Tensor, tops: NDArray[np.int64], lefts: NDArray[np.int64]) -> Tensor:
        """Return the 224x224 crop of each image at (top, left), uint8 [n, 224, 224, 3]."""
        row, image = SIZE * 3, SIZE * SIZE * 3
        # A view of all crops of all images, [n, 33, 33, 224, 224 * 3]: indexing copies only the selected ones.
        crops = pixels.contiguous().as_strided((len(pixels), OFFSETS, OFFSETS, CROP, CROP * 3), (image, row, 3, row, 1))
        numbers = torch.arange(len(pixels), device=self._device)
        top, left = (torch.from_numpy(offsets.copy()).to(self._device) for offsets in (tops, lefts))
        return crops[numbers, top, left].view(-1, CROP, CROP, 3)

    def _resize(self, pixels: Tensor, boxes: NDArray[np.int64]) -> Tensor:
        """Scale the box (top, left, height, width) of each image to 224x224, float32 [n, 224, 224, 3]."""
        crops = torch.empty((len(pixels), CROP, CROP, 3), device=self._device)
        for image, crop, (top, left, height, width) in zip(pixels, crops, boxes.tolist(), strict=True):
            box = image[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
            crop.copy_(functional.interpolate(box, (CROP, CROP), mode="bilinear")[0].permute(1, 2, 0))
        return crops

    def _jitter(self, crops: Tensor, factors: NDArray[np.float64]) -> Tensor:
        """Multiply brightness, contrast and saturation of each image by its factors, [n, 3]."""
        brightness, contrast, saturation = torch.from_numpy(factors.astype(np.float32)).to(self._device).T
        crops = crops.float()
        gray = (crops @ torch.tensor(_GRAY, device=self._device))[..., None]
        mean = gray.mean((1, 2), keepdim=True)
        # One weight for each of: the pixels, their gray value, the mean gray value of the image.
        by_pixel, by_gray = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
        weights = [weight[:, None, None, None] for weight in (by_pixel, by_gray, brightness * (1 - contrast))]
        changed: Tensor = (crops * weights[0]).addcmul_(gray, weights[1])
        return changed.add_(mean * weights[2]).clamp_(0, 255)

    def _change(self, crops: Tensor, selected: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> None:
        rows = torch.from_numpy(np.flatnonzero(selected)).to(self._device)
        crops[rows] = change(crops[rows])

    def _subtract_mean(self, crops: Tensor) -> Tensor:
        return crops.float().sub_(self._mean).permute(0, 3, 1, 2)


def _random_boxes(random: np.random.Generator, count: int, smallest: float) -> NDArray[np.int64]:
    """Draw a box (top, left, height, width) in a 256x256 image for each row, int64 [count, 4].

    Its area is at least the share `smallest` of the image, and the ratio of its sides at most 4 / 3.
    """
    area = random.uniform(smallest, 1, count) * SIZE**2
    ratio = np.exp(random.uniform(-np.log(_RATIO), np.log(_RATIO), count))
    sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)])
    heights, widths = np.clip(sides.round().astype(np.int64), 1, SIZE)
    tops, lefts = (random.integers(0, SIZE - length + 1) for length in (heights, widths))
    return np.stack([tops, lefts, heights, widths], axis=1)
