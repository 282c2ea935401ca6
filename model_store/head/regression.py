"""Multinomial logistic regression with an L2 penalty, in NumPy: the solver, and cross-validation of the penalty.

The loss is the weighted mean cross-entropy plus l2 / 2 times the sum of the squared weights; biases are not penalized.
Features are centered and scaled so that their mean squared norm is 1, which makes one range of penalties fit all nets.
Only their largest principal components are used: the penalty suppresses the others anyway. In this basis the Hessian
is nearly diagonal, so that L-BFGS needs a tenth of the steps.

Guarantees: the same data give the same result. `l2` is chosen for the figures of each fold by the other folds, so no
image influences the model or the penalty that it is evaluated with.
Out of scope: labels and figures (fit.py).
References: Nocedal, Wright, "Numerical Optimization", 2006, algorithm 7.4 (L-BFGS); Halko, Martinsson, Tropp, "Finding
structure with randomness", SIAM Review 53, 2011 (principal components by random projections).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]

PENALTIES: Final = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 13))  # strongest first
COMPONENTS: Final = 512
_OVERSAMPLED: Final = 32  # more random directions than components
_MEMORY: Final = 8  # past steps that L-BFGS keeps
_MAX_STEPS: Final = 200
_TOLERANCE: Final = 1e-3  # of the gradient, as a share of its norm at zero
_ROUGH: Final = 1e-2  # the same while penalties are compared
_BEND: Final = 0.1  # typical second derivative of the cross-entropy by a logit
_SUFFICIENT: Final = 1e-4  # decrease of the loss, as a share of that which the slope predicts
_SMALLEST: Final = 1e-6  # step of the line search
_WORSE: Final = 2  # after so many penalties without a lower loss, the weaker ones are not tried


class StoppedError(Exception):
    """The caller asked to stop."""


@dataclass(frozen=True, slots=True)
class Components:
    """The principal components of features: rows, float32 [n, r], in the basis [d, r], of (features - mean) / scale."""

    rows: Floats
    basis: Floats
    mean: Floats
    scale: float

    @classmethod
    def of(cls, vectors: NDArray[np.floating]) -> Components:
        """Return the largest components of `vectors`, [n, d], at most `COMPONENTS`."""
        rows = vectors.astype(np.float32)
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows -= mean
        squares = float(np.einsum("ij,ij->", rows, rows, dtype=np.float64)) / len(rows)
        scale = float(np.sqrt(squares)) or 1.0
        rows /= np.float32(scale)
        sketch = rows
        if len(rows) > 2 * COMPONENTS:
            directions = np.random.default_rng(0).standard_normal(
                (len(rows), COMPONENTS + _OVERSAMPLED), dtype=np.float32
            )
            for _ in range(2):
                directions, _ = np.linalg.qr(rows @ (rows.T @ directions))
            sketch = directions.T @ rows
        values, vectors_of = np.linalg.eigh(sketch @ sketch.T)
        kept = np.flatnonzero(values > 1e-6 * max(values[-1], 0.0))[-COMPONENTS:]
        basis = (sketch.T @ vectors_of[:, kept]) / np.sqrt(values[kept])
        return cls(rows @ basis, basis.astype(np.float32), mean, scale)

    def unfold(self, parameters: Doubles) -> tuple[Floats, Floats]:
        """Return weights [classes, d] and biases [classes] for the features themselves."""
        weights = (self.basis @ parameters[:-1].astype(np.float32)).T / np.float32(self.scale)
        biases = parameters[-1] - weights.astype(np.float64) @ self.mean.astype(np.float64)
        return np.ascontiguousarray(weights), biases.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Held:
    """Results for held-out images, each of shape [n].

    predicted: the most probable class. confidence: its probability. rank: how many classes are more probable than the
    true one. loss: negative logarithm of the probability of the true class.
    """

    predicted: Labels
    confidence: Doubles
    rank: Labels
    loss: Doubles


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The chosen penalty, the mean loss of each penalty that was tried, and the results for held-out images."""

    l2: float
    losses: Sequence[float]
    held: Held


def class_weights(labels: Labels, classes: int) -> Doubles:
    """Return weights, [n], with which all classes count equally and whose mean is 1."""
    counts = np.bincount(labels, minlength=classes)
    present = int((counts > 0).sum())
    weights: Doubles = (len(labels) / (present * np.maximum(counts, 1)))[labels]
    return weights


def fit(
    rows: Floats,
    labels: Labels,
    weights: Doubles,
    classes: int,
    l2: float,
    *,
    start: Doubles | None = None,
    tolerance: float = _TOLERANCE,
    stopped: Callable[[], bool] = lambda: False,
) -> Doubles:
    """Return the parameters, [d + 1, classes], the last row of which has the biases.

    rows: float32 [n, d]. labels: [n]. weights: of the images, [n]; images with weight 0 are left out. start: parameters
    to start from. Raises StoppedError once `stopped` returns True; it is called before each step.
    """
    used = weights > 0
    if not used.all():
        rows, labels, weights = rows[used], labels[used], weights[used]
    objective = _Objective(rows, labels, weights / weights.sum(), classes, l2)
    return _minimize(objective, np.zeros(objective.shape) if start is None else start, tolerance, stopped)


def logits(rows: Floats, parameters: Doubles) -> Doubles:
    """Return the logits, [n, classes], of float32 rows [n, d]."""
    values: Doubles = (rows @ parameters[:-1].astype(np.float32)).astype(np.float64) + parameters[-1]
    return values


def cross_validate(
    rows: Floats,
    labels: Labels,
    folds: Labels,
    classes: int,
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[CrossValidation, Doubles]:
    """Choose the penalty by cross-validation. Returns also parameters to start the final fit from.

    folds: the number of the fold of each image, [n]; all classes must be in at least two folds. progress: called with
    the share that is done.
    """
    numbers = np.unique(folds)
    weights = class_weights(labels, classes)
    parameters: dict[int, Doubles] = {}
    tried: list[Held] = []
    by_fold: list[Doubles] = []  # for each penalty, the weighted mean loss of each fold
    for step, l2 in enumerate(PENALTIES):
        parts = []
        for number in numbers.tolist():
            inside = folds == number
            training = np.where(inside, 0.0, weights)
            parameters[number] = fit(
                rows, labels, training, classes, l2, start=parameters.get(number), tolerance=_ROUGH, stopped=stopped
            )
            parts.append((np.flatnonzero(inside), _evaluate(rows[inside], labels[inside], parameters[number])))
        tried.append(_joined(len(labels), parts))
        by_fold.append(np.array([np.average(held.loss, weights=weights[where]) for where, held in parts]))
        progress((step + 1) / len(PENALTIES))
        means = [losses.mean() for losses in by_fold]
        if step - int(np.argmin(means)) >= _WORSE:
            break
    table = np.array(by_fold)  # [penalties, folds]
    best = int(table.mean(axis=1).argmin())
    held = tried[best]
    chosen = Held(held.predicted.copy(), held.confidence.copy(), held.rank.copy(), held.loss.copy())
    for column, number in enumerate(numbers.tolist()):
        others = np.delete(table, column, axis=1).mean(axis=1)
        source, inside = tried[int(others.argmin())], folds == number
        for name in ("predicted", "confidence", "rank", "loss"):
            getattr(chosen, name)[inside] = getattr(source, name)[inside]
    losses = [float(loss) for loss in table.mean(axis=1)]
    return CrossValidation(PENALTIES[best], losses, chosen), parameters[int(numbers[0])]


class _Objective:
    """The loss and its gradient as a function of the parameters, [d + 1, classes]."""

    def __init__(self, rows: Floats, labels: Labels, weights: Doubles, classes: int, l2: float) -> None:
        self.rows, self.labels, self.weights, self.l2 = rows, labels, weights, l2
        self.shape = rows.shape[1] + 1, classes
        # The diagonal of an approximate inverse of the Hessian, [d + 1, 1].
        spread = np.append(self.weights @ np.square(rows, dtype=np.float64), 1.0)
        self.inverse = 1 / (_BEND * spread + np.append(np.full(rows.shape[1], l2), 0.0))[:, None]
        self._order = np.arange(len(labels))

    def __call__(self, parameters: Doubles) -> tuple[float, Doubles]:
        """Return (loss, gradient)."""
        scores = logits(self.rows, parameters)
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[self._order, self.labels]
        np.exp(scores, out=scores)
        sums = scores.sum(axis=1)
        matrix = parameters[:-1]
        loss = float(self.weights @ (np.log(sums) - own)) + self.l2 / 2 * float(np.einsum("ij,ij->", matrix, matrix))
        scores /= sums[:, None]
        scores[self._order, self.labels] -= 1
        scores *= self.weights[:, None]
        gradient = np.empty(self.shape)
        gradient[:-1] = self.rows.T @ scores.astype(np.float32)
        gradient[:-1] += self.l2 * matrix
        gradient[-1] = scores.sum(axis=0)
        return loss, gradient


def _minimize(objective: _Objective, start: Doubles, tolerance: float, stopped: Callable[[], bool]) -> Doubles:
    """Minimize a convex function with L-BFGS and backtracking, until the gradient is small."""

    def norm(gradient: Doubles) -> float:
        return float(np.sqrt(np.vdot(gradient, objective.inverse * gradient)))

    position = start
    limit = tolerance * norm(objective(np.zeros(objective.shape))[1])
    loss, gradient = objective(position)
    past: deque[tuple[Doubles, Doubles, float]] = deque(maxlen=_MEMORY)
    for _ in range(_MAX_STEPS):
        if stopped():
            raise StoppedError
        if norm(gradient) <= limit:
            break
        direction = _direction(gradient, objective.inverse, past)
        slope = float(np.vdot(direction, gradient))
        size = 1.0
        while True:
            moved = position + size * direction
            new_loss, new_gradient = objective(moved)
            if new_loss <= loss + _SUFFICIENT * size * slope:
                break
            size /= 2
            if size < _SMALLEST:  # the loss does not decrease any more, within the precision of float32
                return position
        change, bend = moved - position, new_gradient - gradient
        curvature = float(np.vdot(change, bend))
        if curvature > 0:
            past.append((change, bend, curvature))
        position, loss, gradient = moved, new_loss, new_gradient
    return position


def _direction(gradient: Doubles, inverse: Doubles, past: deque[tuple[Doubles, Doubles, float]]) -> Doubles:
    """Return minus the inverse Hessian, as `inverse` and the past steps suggest it, times the gradient."""
    direction = -gradient
    shares = []
    for change, bend, curvature in reversed(past):
        share = float(np.vdot(change, direction)) / curvature
        shares.append(share)
        direction -= share * bend
    direction *= inverse
    if past:
        _, bend, curvature = past[-1]
        direction *= curvature / float(np.vdot(bend, inverse * bend))
    for (change, bend, curvature), share in zip(past, reversed(shares), strict=True):
        direction += (share - float(np.vdot(bend, direction)) / curvature) * change
    return direction


def _evaluate(rows: Floats, labels: Labels, parameters: Doubles) -> Held:
    scores = logits(rows, parameters)
    scores -= scores.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(scores).sum(axis=1))
    own = scores[np.arange(len(labels)), labels]
    return Held(scores.argmax(axis=1), np.exp(-log_sums), (scores > own[:, None]).sum(axis=1), log_sums - own)


def _joined(count: int, parts: Sequence[tuple[Labels, Held]]) -> Held:
    """Return the results of all folds in the order of the images."""
    whole = Held(np.zeros(count, np.int64), np.zeros(count), np.zeros(count, np.int64), np.zeros(count))
    for where, held in parts:
        for name in ("predicted", "confidence", "rank", "loss"):
            getattr(whole, name)[where] = getattr(held, name)
    return whole
