"""Make the reference of a version from the fc7 vectors and the appearance of training images.

Guarantees: the same images give the same reference. One image is enough, and vectors may all be equal or zero.
Out of scope: computing the vectors.
References: Halko, Martinsson and Tropp 2011, "Finding structure with randomness" (subspace iteration).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.novelty.appearance import NUMBERS
from model_store.novelty.reference import Floats, Reference

DIMENSIONS: Final = 128
MAX_IMAGES: Final = 3_000  # 0.9 MB
MAX_DISTANCES: Final = 10_000
# Of a description. Without it, images that all look the same would make any other compression or exposure unusual.
_LEAST_VARIANCE: Final = 0.05
_OVERSAMPLED: Final = 16  # more directions during the iteration, for the accuracy of the last ones
_ITERATIONS: Final = 6


def fit(vectors: Floats, descriptions: Floats) -> Reference:
    """Return the reference of n >= 1 training images, without distances of validation images; see `calibrated`.

    vectors: float32 [n,4096]. descriptions: of `appearance.describe`, float32 [n,18]. Raises ValueError if there are
    none, or values that are not finite.
    """
    if not len(vectors) or not np.isfinite(vectors).all():
        raise ValueError("A reference requires at least one vector, and finite values.")
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = vectors - mean
    directions = _main_directions(centered, min(DIMENSIONS, len(vectors) - 1))
    directions = directions.astype(np.float16).astype(np.float32)  # as they are stored
    coordinates = centered @ directions.T
    rests = np.einsum("ij,ij->i", centered, centered) - np.einsum("ij,ij->i", coordinates, coordinates)
    looks_mean = descriptions.mean(axis=0, dtype=np.float64).astype(np.float32)
    whitening = _whitening(descriptions - looks_mean)
    looks = (descriptions - looks_mean) @ whitening
    nothing = np.zeros(0, np.float32)
    fc7 = (mean, directions, coordinates, np.maximum(rests, 0))
    return Reference(*fc7, looks_mean, whitening, looks, nothing, nothing, nothing, nothing)


def calibrated(
    reference: Reference, distances: Floats, looks_distances: Floats, predicted: NDArray[np.int64], classes: int
) -> Reference:
    """Return the reference with the results of m validation images, which must not be among its training images.

    distances, looks_distances: in fc7 and in appearance, float32 [m]. predicted: their most probable classes, int64
    [m], from 0 to `classes` - 1.
    """
    shares = np.bincount(predicted, minlength=classes) / len(predicted)
    reference = replace(
        reference,
        distances=_ordered(distances),
        looks_distances=_ordered(looks_distances),
        class_shares=shares.astype(np.float32),
    )
    return replace(reference, scores=_ordered(reference.scores_of(distances, looks_distances)))


def _ordered(values: Floats) -> Floats:
    """Return the values in ascending order; of very many, as many quantiles as are kept."""
    ordered: Floats = np.sort(values).astype(np.float32)
    if len(ordered) <= MAX_DISTANCES:
        return ordered
    quantiles: Floats = np.quantile(ordered, np.linspace(0, 1, MAX_DISTANCES)).astype(np.float32)
    return quantiles


def _whitening(centered: Floats) -> Floats:
    """Return the matrix [18,18] that gives n centered descriptions about unit variance in every direction."""
    covariance = (centered.T @ centered).astype(np.float64) / len(centered) + _LEAST_VARIANCE * np.eye(NUMBERS)
    return np.linalg.inv(np.linalg.cholesky(covariance)).T.astype(np.float32)


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
