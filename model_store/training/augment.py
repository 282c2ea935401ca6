"""Prepared 256x256 pixels to the net's inputs: crops, flips, turns and colour noise; or the centre.

Promises: what an image gets depends on (seed, epoch, place in the epoch) alone, so a run that was stopped in the middle
of an epoch goes on exactly; the central 224x224 of the mean image is subtracted from every crop, as the original code
and the served graph do.
Does not: read files.
Source: the paper, sections 2 and 4.1; for the colour noise's square root, the original code.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.image import CROP, SIZE
from model_store.training.recipe import Recipe
from model_store.training.runs import Statistics

OFFSETS: Final = SIZE - CROP + 1  # 33 places a side


def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the training images in an epoch: a permutation, int64 [images]."""
    return np.random.default_rng([seed, epoch]).permutation(images)


class Augmenter:
    """Makes batches of the net's inputs: float32 [n, 3, 224, 224], channels last in memory, mean subtracted."""

    def __init__(self, recipe: Recipe, statistics: Statistics) -> None:
        self._recipe = recipe
        edge = (SIZE - CROP) // 2
        self._mean = torch.from_numpy(statistics.mean[edge : edge + CROP, edge : edge + CROP].copy())
        # Eigenvectors times the square roots of their eigenvalues, in grey levels. Times the eigenvalues themselves, as
        # the text can be read, the shifts would be a hundred times too large.
        self._components = statistics.eigenvectors * np.sqrt(statistics.eigenvalues)

    def training_batch(self, pixels: NDArray[np.uint8], seed: int, epoch: int, step: int) -> Tensor:
        """Return augmented inputs for `pixels`, uint8 [n, 256, 256, 3], of one step of an epoch."""
        recipe, count = self._recipe, len(pixels)
        random = np.random.default_rng([seed, epoch, step])
        # All draws are made whatever the recipe uses, so that changing one option leaves the others' draws alone.
        tops, lefts = random.integers(0, OFFSETS, (2, count))
        mirrored, upside_down = random.random((2, count)) < 0.5
        turns = random.integers(0, 4, count)
        alphas = random.normal(0, 1, (count, 3))
        crops = np.empty((count, CROP, CROP, 3), np.uint8)
        for index, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            crop = pixels[index, top : top + CROP, left : left + CROP]
            if recipe.flip and mirrored[index]:
                crop = crop[:, ::-1]
            if recipe.flip_vertical and upside_down[index]:
                crop = crop[::-1]
            if recipe.quarter_turns:
                crop = np.rot90(crop, int(turns[index]))
            crops[index] = crop
        batch = self._subtract_mean(crops)
        if recipe.colour_noise:
            shifts = (alphas * recipe.colour_noise) @ self._components.T
            batch += torch.from_numpy(shifts.astype(np.float32))[:, :, None, None]
        return batch

    def centre_batch(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return the inputs of the central crops of `pixels`, uint8 [n, 256, 256, 3]."""
        edge = (SIZE - CROP) // 2
        return self._subtract_mean(pixels[:, edge : edge + CROP, edge : edge + CROP])

    def _subtract_mean(self, crops: NDArray[np.uint8]) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(crops)).float()
        return batch.sub_(self._mean).permute(0, 3, 1, 2)
