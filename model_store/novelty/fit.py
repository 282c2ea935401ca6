"""Make the reference of a version from the fc7 vectors of training images.

Guarantees: the same vectors give the same reference. One vector is enough, and vectors may all be equal or zero.
Out of scope: computing the vectors.
References: Halko, Martinsson and Tropp 2011, "Finding structure with randomness" (subspace iteration).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.novelty.reference import Floats, Reference

DIMENSIONS: Final = 128
MAX_IMAGES: Final = 4_000  # 1 MB of coordinates
MAX_DISTANCES: Final = 10_000
_OVERSAMPLED: Final = 16  # more directions during the iteration, for the accuracy of the last ones
_ITERATIONS: Final = 6


def fit(vectors: Floats, dimensions: int = DIMENSIONS) -> Reference:
    """Return the reference of n training vectors, float32 [n,4096], n >= 1, without distances of validation images.

    Complete it with `calibrated`. Raises ValueError if there are no vectors, or values that are not finite.
    """
    if not len(vectors) or not np.isfinite(vectors).all():
        raise ValueError("A reference requires at least one vector, and finite values.")
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = vectors - mean
    directions = _main_directions(centered, min(dimensions, len(vectors) - 1))
    directions = directions.astype(np.float16).astype(np.float32)  # as they are stored
    coordinates = centered @ directions.T
    rests = np.einsum("ij,ij->i", centered, centered) - np.einsum("ij,ij->i", coordinates, coordinates)
    nothing = np.zeros(0, np.float32)
    return Reference(mean, directions, coordinates, np.maximum(rests, 0), nothing, nothing)


def calibrated(reference: Reference, distances: Floats, predicted: NDArray[np.int64], classes: int) -> Reference:
    """Return the reference with the results of m validation images, which must not be among its training images.

    distances: float32 [m]. predicted: their most probable classes, int64 [m], from 0 to `classes` - 1.
    """
    ordered = np.sort(distances).astype(np.float32)
    if len(ordered) > MAX_DISTANCES:
        ordered = np.quantile(ordered, np.linspace(0, 1, MAX_DISTANCES)).astype(np.float32)
    shares = np.bincount(predicted, minlength=classes) / len(predicted)
    return replace(reference, distances=ordered, class_shares=shares.astype(np.float32))


def _main_directions(centered: Floats, count: int) -> Floats:
    """Return the `count` directions of largest variance of n centered vectors, as orthonormal rows [count,4096]."""
    if count < 1:
        return np.zeros((0, centered.shape[1]), np.float32)
    width = min(count + _OVERSAMPLED, len(centered))
    basis = np.random.default_rng(0).standard_normal((centered.shape[1], width)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(centered.T @ (centered @ basis))[0]
    _, _, rows = np.linalg.svd(centered @ basis, full_matrices=False)
    directions: Floats = (basis @ rows[:count].T).T
    return np.ascontiguousarray(directions)
