"""The mean image and the principal components of RGB over a training set.

Guarantees: the sums are exact (of whole numbers), so the results do not depend on the order of the images.
References: the paper, sections 2 (mean) and 4.1 (components).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_store.image import SIZE

# Sums over the pixels of an image: products of the channels, int64 [3, 3], and channels, int64 [3].
ChannelSums = tuple[NDArray[np.int64], NDArray[np.int64]]


def channel_sums(pixels: NDArray[np.uint8]) -> ChannelSums:
    """Return the channel sums of an image, uint8 [height, width, 3]."""
    channels = pixels.reshape(-1, 3).astype(np.float64)  # float64 holds these whole numbers exactly
    return (channels.T @ channels).astype(np.int64), channels.sum(0).astype(np.int64)


@dataclass(slots=True)
class Sums:
    """Running sums over images, from which `Statistics` are computed. `products`, `totals`: see `ChannelSums`."""

    images: int = 0
    image: NDArray[np.int64] = field(default_factory=lambda: np.zeros((SIZE, SIZE, 3), np.int64))
    products: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 3), np.int64))
    totals: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))

    def add(self, pixels: NDArray[np.uint8], sums: ChannelSums) -> None:
        """Add an image, uint8 [256, 256, 3], and its `channel_sums`."""
        self.images += 1
        self.image += pixels
        self.products += sums[0]
        self.totals += sums[1]

    def statistics(self) -> Statistics:
        """Return the mean image and the components of all images added."""
        pixels = self.images * SIZE * SIZE
        mean = self.totals / pixels
        covariance = self.products / pixels - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        order = np.argsort(-values, kind="stable")
        return Statistics(
            (self.image / self.images).astype(np.float32),
            np.maximum(values[order], 0).astype(np.float32),  # rounding can make the zeros of gray images negative
            vectors[:, order].astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of the training set's prepared pixels (0-255). The largest eigenvalue comes first (section 4.1)."""

    mean: NDArray[np.float32]  # [256, 256, 3]: the mean image
    eigenvalues: NDArray[np.float32]  # [3]: of the covariance of RGB
    eigenvectors: NDArray[np.float32]  # [3, 3]: one per column
