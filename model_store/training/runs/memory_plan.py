"""How much memory a run needs, and how much of it is left for prepared images.

Guarantees: a run that does not fit the limit of the machine, the container or `ulimit -v` is rejected before the images
are read.
Out of scope: the memory of CUDA devices.
References: docs/training.md, "Memory and space".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from model_store.errors import TrainingMemoryError
from model_store.training.nets.alexnet import Architecture, Conv, Hidden
from model_store.training.recipe import Recipe

_COPIES: Final = 3  # weights, gradients, velocities
# Arrays of the size of a layer's output that a step keeps for each image: 3.1 were measured at width 0.25, in float32.
_MAPS: Final = 3.2
_FIXED: Final = 250_000_000  # decoding in processes of its own, batches that are read ahead, and buffers of torch
_ON_CUDA: Final = 1_500_000_000  # CUDA's libraries and page-locked batches in main memory


def checkpoint_bytes(architecture: Architecture) -> int:
    """Return the largest size of the checkpoints of a run on disk: the old one and the new one that replaces it."""
    return 2 * 2 * _weight_bytes(architecture)


def training_bytes(architecture: Architecture, recipe: Recipe, device: torch.device) -> int:
    """Return an estimate of the main memory that training needs, without prepared images."""
    if device.type == "cuda":
        return _ON_CUDA
    outputs = sum(output.channels * output.size**2 for output in architecture.maps())
    return int(_COPIES * _weight_bytes(architecture) + 4 * _MAPS * recipe.batch_size * outputs) + _FIXED


def picture_budget(
    wanted: int, architecture: Architecture, recipe: Recipe, device: torch.device, available: int | None
) -> int:
    """Return the bytes for prepared images: `wanted`, or as much as the memory has left beside training.

    available: bytes that the process can still allocate, None if unknown.
    Raises TrainingMemoryError if training itself does not fit.
    """
    if available is None:
        return wanted
    needed = training_bytes(architecture, recipe, device)
    if needed > available:
        smaller = (1 << power for power in range((recipe.batch_size - 1).bit_length() - 1, -1, -1))
        fits = (
            size
            for size in smaller
            if training_bytes(architecture, replace(recipe, batch_size=size), device) <= available
        )
        raise TrainingMemoryError(needed, available, next(fits, None))
    return min(wanted, available - needed)


def _weight_bytes(architecture: Architecture) -> int:
    inputs, maps, weights = 3, 1, 0  # maps: pixels of an input map that a fully-connected layer reads
    for layer, output in zip((*architecture.layers, None), architecture.maps(), strict=True):
        if isinstance(layer, Conv):
            weights += layer.kernels * (inputs // layer.towers * layer.size**2 + 1)
        elif layer is None or isinstance(layer, Hidden):
            weights += output.channels * (inputs * maps + 1)
        inputs, maps = output.channels, output.size**2
    return 4 * weights
