"""The mean image and the principal components of RGB over a training set (the paper, sections 2 and 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_store.image import SIZE


def channel_sums(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sums of products of the channels, int64 [3, 3], and of the channels, int64 [3], over all pixels."""
    channels = pixels.reshape(-1, 3).astype(np.float64)  # whole numbers, so these sums are exact
    return (channels.T @ channels).astype(np.int64), channels.sum(0).astype(np.int64)


@dataclass(slots=True)
class Sums:
    """Exact running sums for the mean image and the covariance of RGB. `products` and `totals`: of `channel_sums`."""

    images: int = 0
    image: NDArray[np.int64] = field(default_factory=lambda: np.zeros((SIZE, SIZE, 3), np.int64))
    products: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 3), np.int64))
    totals: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))

    def add(self, pixels: NDArray[np.uint8], products: NDArray[np.int64], totals: NDArray[np.int64]) -> None:
        """Add an image, uint8 [256, 256, 3], with its `channel_sums`."""
        self.images += 1
        self.image += pixels
        self.products += products
        self.totals += totals

    def statistics(self) -> Statistics:
        """Return the mean image and the components of all images added."""
        pixels = self.images * SIZE * SIZE
        mean = self.totals / pixels
        covariance = self.products / pixels - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        order = np.argsort(-values, kind="stable")
        return Statistics(
            (self.image / self.images).astype(np.float32),
            np.maximum(values[order], 0).astype(np.float32),  # rounding may leave a grey set's zeros below zero
            vectors[:, order].astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the training set's prepared pixels, 0-255. Components are sorted, largest eigenvalue first (section 4.1)."""

    mean: NDArray[np.float32]  # [256, 256, 3]: the mean image
    eigenvalues: NDArray[np.float32]  # [3]: of the covariance of RGB
    eigenvectors: NDArray[np.float32]  # [3, 3]: one a column
