"""Out-of-sample class probabilities from vectors: softmax regression with cross-validation.

Guarantees: the probabilities of a picture come from a classifier that has seen neither it nor its copies, unless all
pictures of its class are copies of each other. The same input gives the same result.
References: Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

FOLDS: Final = 5
_PENALTY: Final = 1e-2  # of the squared weights, for standardized vectors
_ITERATIONS: Final = 60
_SEED: Final = 0


def out_of_sample(
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    groups: NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NDArray[np.float64]:
    """Return the probability of each class for each vector, float64 [n, classes].

    vectors: float32 [n, d]. labels: int64 [n], from 0 to classes - 1. groups: int64 [n], the same number for copies of
    a picture; None: there are no copies. progress: called with the folds done and their number.
    """
    folds = _stratified_folds(labels)
    if groups is not None:
        folds = _together(folds, labels, groups)
    x = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    x = np.hstack([x / np.sqrt(x.shape[1]), np.ones((len(x), 1))]).astype(np.float64)
    probabilities = np.zeros((len(x), classes))
    for fold in range(FOLDS):
        held_out = folds == fold
        if held_out.any() and not held_out.all():
            weights = _fit(x[~held_out], labels[~held_out], classes)
            probabilities[held_out] = np.exp(_log_softmax(x[held_out] @ weights))
        progress(fold + 1, FOLDS)
    return probabilities


def _stratified_folds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold of each label, int64 [n]: the folds share every class as evenly as possible."""
    shuffled = np.random.default_rng(_SEED).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % FOLDS
    return folds


def _together(folds: NDArray[np.int64], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the folds with each group in that of its first picture. Otherwise, copies would confirm a wrong label.

    A class that is one group stays divided: a classifier that has seen nothing of it cannot judge it.
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    undivided = [label for label in np.unique(labels) if len(np.unique(groups[labels == label])) == 1]
    return np.where(np.isin(labels, undivided), folds, folds[first][inverse.reshape(-1)])


def _fit(x: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return the weights of a softmax regression, float64 [d, classes]; the last column of `x` is 1."""
    from scipy.optimize import minimize  # noqa: PLC0415 - slow to import, and only needed here

    count, width = x.shape
    rows = np.arange(count)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(width, classes)
        log = _log_softmax(x @ weights)
        error = np.exp(log)
        error[rows, labels] -= 1
        gradient = x.T @ error / count
        gradient[:-1] += _PENALTY / width * weights[:-1]
        value = -log[rows, labels].mean() + _PENALTY / width / 2 * np.square(weights[:-1]).sum()
        return float(value), gradient.ravel()

    found = minimize(loss, np.zeros(width * classes), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    weights: NDArray[np.float64] = found.x.reshape(width, classes)
    return weights


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalized
