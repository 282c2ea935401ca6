"""Prepared 256x256 pixels to the net's inputs, in batches on the device: crops, flips, turns, colour noise; the centre.

Promises: what an image gets depends on (seed, epoch, place in the epoch) alone, so a run that was stopped in the middle
of an epoch goes on exactly, and processes that share a batch make together what one would; the central 224x224 of the
mean image is subtracted from every crop, as the original code and the served graph do.
Does not: read files.
Source: the paper, sections 2 and 4.1; for the colour noise's square root, the original code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.image import CROP, SIZE
from model_store.training.recipe import Recipe
from model_store.training.statistics import Statistics

OFFSETS: Final = SIZE - CROP + 1  # 33 places a side
_EDGE: Final = (SIZE - CROP) // 2
_CPU: Final = torch.device("cpu")


def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the training images in an epoch: a permutation, int64 [images]."""
    return np.random.default_rng([seed, epoch]).permutation(images)


class Augmenter:
    """Makes batches of the net's inputs on a device: float32 [n, 3, 224, 224], channels last, mean subtracted.

    Pixels come as uint8 [n, 256, 256, 3]; they are cropped and turned as bytes, so that little is moved.
    """

    def __init__(self, recipe: Recipe, statistics: Statistics, device: torch.device = _CPU) -> None:
        self._recipe, self._device = recipe, device
        mean = statistics.mean[_EDGE : _EDGE + CROP, _EDGE : _EDGE + CROP]
        self._mean = torch.from_numpy(mean.copy()).to(device)
        # Eigenvectors times the square roots of their eigenvalues, in grey levels. Times the eigenvalues themselves, as
        # the text can be read, the shifts would be a hundred times too large.
        self._components = statistics.eigenvectors * np.sqrt(statistics.eigenvalues)

    def training_batch(
        self,
        pixels: NDArray[np.uint8] | Tensor,
        seed: int,
        epoch: int,
        step: int,
        *,
        rows: tuple[int, int] | None = None,
        noisy: bool = True,
    ) -> Tensor:
        """Return augmented inputs for `pixels` of one step of an epoch.

        rows: (first row, rows in all) where `pixels` are a part of the step's batch. noisy: False leaves the colour
        noise out.
        """
        recipe = self._recipe
        first, count = rows or (0, len(pixels))
        mine = slice(first, first + len(pixels))
        random = np.random.default_rng([seed, epoch, step])
        # All draws are made whatever the recipe uses, and for the whole batch, so that neither one option nor the
        # number of processes changes the others' draws.
        tops, lefts = random.integers(0, OFFSETS, (2, count))[:, mine]
        mirrored, upside_down = random.random((2, count))[:, mine] < 0.5
        turns = random.integers(0, 4, count)[mine]
        alphas = random.normal(0, 1, (count, 3))[mine]
        crops = self._crop(self._to_device(pixels), tops, lefts)
        if recipe.flip:
            self._change(crops, mirrored, lambda some: some.flip(2))
        if recipe.flip_vertical:
            self._change(crops, upside_down, lambda some: some.flip(1))
        if recipe.quarter_turns:
            for quarters in (1, 2, 3):
                self._change(crops, turns == quarters, partial(torch.rot90, k=quarters, dims=(1, 2)))
        batch = self._subtract_mean(crops)
        if recipe.colour_noise and noisy:
            shifts = torch.from_numpy(((alphas * recipe.colour_noise) @ self._components.T).astype(np.float32))
            batch += shifts.to(self._device, non_blocking=True)[:, :, None, None]
            if recipe.noise_shrinks:
                batch /= 1 + recipe.colour_noise
        return batch

    def centre_batch(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return the inputs of the central crops of `pixels`."""
        return self._subtract_mean(self._to_device(pixels)[:, _EDGE : _EDGE + CROP, _EDGE : _EDGE + CROP])

    def _to_device(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        whole = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        return whole.to(self._device, non_blocking=True)

    def _crop(self, pixels: Tensor, tops: NDArray[np.int64], lefts: NDArray[np.int64]) -> Tensor:
        """Return each image's 224x224 from (top, left) on, uint8 [n, 224, 224, 3], in one indexing."""
        row, image = SIZE * 3, SIZE * SIZE * 3
        # Every crop of every image as a view, [n, 33, 33, 224, 224 * 3]: nothing is copied but what is chosen.
        crops = pixels.contiguous().as_strided((len(pixels), OFFSETS, OFFSETS, CROP, CROP * 3), (image, row, 3, row, 1))
        numbers = torch.arange(len(pixels), device=self._device)
        at = [torch.from_numpy(places.copy()).to(self._device) for places in (tops, lefts)]
        return crops[numbers, at[0], at[1]].view(-1, CROP, CROP, 3)

    def _change(self, crops: Tensor, which: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> None:
        some = torch.from_numpy(np.flatnonzero(which)).to(self._device)
        crops[some] = change(crops[some])

    def _subtract_mean(self, crops: Tensor) -> Tensor:
        return crops.float().sub_(self._mean).permute(0, 3, 1, 2)
