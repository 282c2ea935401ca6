"""Logistic regression: the optimum is the one that SciPy finds, and penalties are chosen by cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize

from model_store.head.regression import (
    Components,
    StoppedError,
    class_weights,
    cross_validate,
    fit,
    logits,
)


def clusters(n: int, classes: int, size: int = 40, noise: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centers = random.standard_normal((classes, size))
    return (centers[labels] + noise * random.standard_normal((n, size))).astype(np.float32), labels


def test_the_fit_is_the_minimum_of_the_penalized_loss() -> None:
    vectors, labels = clusters(90, 3, noise=2)
    labels[:40] = 0  # uneven
    components = Components.of(vectors)
    rows, weights, l2 = components.rows, class_weights(labels, 3), 1e-2
    assert weights.mean() == pytest.approx(1)
    assert [weights[labels == label].sum() for label in range(3)] == pytest.approx([30, 30, 30])

    def loss(flat: NDArray[np.float64]) -> float:
        parameters = flat.reshape(-1, 3)
        scores = rows.astype(np.float64) @ parameters[:-1] + parameters[-1]
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[np.arange(len(labels)), labels] - np.log(np.exp(scores).sum(axis=1))
        return float(-(weights / weights.sum()) @ own + l2 / 2 * np.square(parameters[:-1]).sum())

    expected = optimize.minimize(loss, np.zeros((rows.shape[1] + 1) * 3), options={"gtol": 1e-6, "maxiter": 2000})
    found = fit(rows, labels, weights, 3, l2, tolerance=1e-5)
    assert loss(found.ravel()) == pytest.approx(float(expected.fun), rel=1e-5)
    difference = (logits(rows, found) - logits(rows, expected.x.reshape(-1, 3))).std(axis=1)
    assert float(difference.max()) < 0.02
    weights_of, biases = components.unfold(found)  # the same answers for the features themselves
    assert np.allclose(vectors @ weights_of.T + biases, logits(rows, found), atol=1e-3)


def test_components_keep_distances() -> None:
    vectors, _ = clusters(1200, 4, size=1500)
    vectors[:, 60:] = 0  # of rank 60
    components = Components.of(vectors)
    assert components.rows.shape == (1200, 60)
    expected = np.linalg.norm(vectors[:200] - vectors[200:400], axis=1)
    found = np.linalg.norm(components.rows[:200] - components.rows[200:400], axis=1) * components.scale
    assert np.allclose(found, expected, rtol=1e-3)


def test_cross_validation_finds_that_random_labels_cannot_be_learned() -> None:
    vectors, _ = clusters(200, 2)
    labels = np.random.default_rng(1).integers(0, 2, 200)
    result, _ = cross_validate(Components.of(vectors).rows, labels, np.arange(200) % 5, 2)
    assert result.l2 == pytest.approx(0.1)  # the strongest
    assert 0.35 < (result.held.predicted == labels).mean() < 0.65
    assert min(result.losses) > np.log(2) - 0.05


def test_a_fit_can_be_stopped() -> None:
    vectors, labels = clusters(50, 2)
    with pytest.raises(StoppedError):
        fit(Components.of(vectors).rows, labels, class_weights(labels, 2), 2, 1e-3, stopped=lambda: True)
