"""Fit a head, the last layer of a net, to labeled fc7 vectors, and measure it by cross-validation.

Guarantees: labels that look alike are one class, and a note says so. Copies of an image are in one fold, so that none
is evaluated by a model that saw the other. All classes count equally, however many images they have. The figures are
those of images that the evaluated model did not see.
Out of scope: reading vectors (index), the graph (graph.py), publishing (publish.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.classes.figures import FigureCounter, Figures
from model_store.classes.names import one_spelling
from model_store.head.errors import OneClassError, TooFewLabelsError
from model_store.head.regression import Components, Labels, class_weights, cross_validate, fit

LEAST: Final = 5  # images of a class, one for each fold
_COPIES: Final = 0.05  # distance of copies, as a share of the root mean square distance from the mean
_TOP: Final = 5
_LISTED: Final = 10
_BLOCK: Final = 1024


@dataclass(frozen=True, slots=True)
class Head:
    """A last layer. labels: of the classes. weights: float32 [classes, 4096]. biases: float32 [classes]."""

    labels: tuple[str, ...]
    weights: NDArray[np.float32]
    biases: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head and how it was fitted.

    figures, top5_error: by cross-validation. l2: the penalty. images: how many it was fitted to. left_out: images of
    classes with too few of them. notes: for the user.
    """

    head: Head
    figures: Figures
    top5_error: float
    l2: float
    images: int
    left_out: dict[str, int]
    notes: tuple[str, ...]

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the manifest, as those of an export."""
        return {
            "top5_error": self.top5_error,
            **self.figures.to_dict(),
            "views": 1,
            "images": self.images,
            "split": f"cross-validation, {LEAST} folds",
            "data": "index",
        }


def fit_head(
    vectors: NDArray[np.floating],
    labels: Sequence[str],
    *,
    known: Collection[str] = (),
    skip_small: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda _: None,
) -> FittedHead:
    """Fit a head to `vectors`, [n, 4096], and their labels.

    known: the classes of the model that computed the vectors; their spelling and order are kept. skip_small: leave out
    classes with too few images instead of raising. progress: called with the share that is done.
    Raises TooFewLabelsError, OneClassError, StoppedError.
    """
    counts = Counter(labels)
    spelling = one_spelling(counts, known)
    notes = [
        f"The labels '{label}' and '{chosen}' are one class, '{chosen}'."
        for label, chosen in sorted(spelling.items())
        if label != chosen
    ]
    names = np.array([spelling[label] for label in labels], dtype=object)
    components = Components.of(vectors)
    copies = _copies(vectors, components)
    small = _small_classes(names, copies)
    if small and not skip_small:
        raise TooFewLabelsError(_describe(small), LEAST)
    kept = np.array([name not in small for name in names], dtype=bool)
    classes = _ordered({str(name) for name in names[kept]}, known)
    if len(classes) < 2:
        if small:
            raise TooFewLabelsError(_describe(small), LEAST)
        raise OneClassError(classes[0], int(kept.sum()))
    number_of = {name: number for number, name in enumerate(classes)}
    truth = np.array([number_of[str(name)] for name in names[kept]], dtype=np.int64)
    features = components.rows[kept]
    folds = _folds(truth, copies[kept])
    result, start = cross_validate(features, truth, folds, len(classes), stopped=stopped, progress=progress)
    weights = class_weights(truth, len(classes))
    parameters = fit(features, truth, weights, len(classes), result.l2, start=start, stopped=stopped)
    counter = FigureCounter(len(classes))
    counter.add(truth, result.held.predicted, result.held.confidence)
    return FittedHead(
        Head(tuple(classes), *components.unfold(parameters)),
        counter.figures(classes),
        float((result.held.rank >= _TOP).mean()),
        result.l2,
        len(truth),
        {name: int((names == name).sum()) for name in small},
        tuple(notes),
    )


def _copies(vectors: NDArray[np.floating], components: Components) -> Labels:
    """Return a number for each image, [n], which copies of one image share."""
    rows = components.rows
    norms = np.einsum("ij,ij->i", rows, rows)
    group = np.arange(len(rows))

    def root(number: int) -> int:
        while group[number] != number:
            group[number] = group[group[number]]
            number = int(group[number])
        return number

    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        squares = norms[block, None] + norms[None] - 2 * rows[block] @ rows.T
        for first, second in np.argwhere(squares < _COPIES**2):
            if start + first < second and _near(vectors, components, start + int(first), int(second)):
                group[root(int(second))] = root(start + int(first))
    return np.array([root(number) for number in range(len(rows))], dtype=np.int64)


def _near(vectors: NDArray[np.floating], components: Components, first: int, second: int) -> bool:
    """Return whether two images are copies: near in the components, and also in the features themselves."""
    difference = vectors[first].astype(np.float32) - vectors[second].astype(np.float32)
    return float(np.linalg.norm(difference)) < _COPIES * components.scale


def _small_classes(names: NDArray[Any], copies: Labels) -> dict[str, int]:
    """Return the classes with too few images, and how many different ones they have."""
    different = Counter({str(name): 0 for name in names})
    different.update(str(name) for name, _ in {*zip(names.tolist(), copies.tolist(), strict=True)})
    return {name: count for name, count in sorted(different.items()) if count < LEAST}


def _describe(small: dict[str, int]) -> str:
    """Return, for example, "'cat' has 3 and needs 2 more"."""
    parts = [f"{name!r} has {count} and needs {LEAST - count} more" for name, count in list(small.items())[:_LISTED]]
    more = f" and {len(small) - _LISTED} more classes" if len(small) > _LISTED else ""
    return ", ".join(parts) + more


def _ordered(names: set[str], known: Collection[str]) -> list[str]:
    """Return the classes: those of the model in its order, then the new ones."""
    return [name for name in known if name in names] + sorted(names - set(known))


def _folds(truth: Labels, copies: Labels) -> Labels:
    """Return the fold of each image: every class is spread evenly, and copies are in the same fold."""
    random = np.random.default_rng(0)
    fold_of: dict[int, int] = {}
    for number in range(int(truth.max()) + 1):
        groups = np.unique(copies[truth == number])
        taken = Counter(fold_of[group] for group in groups.tolist() if group in fold_of)
        for group in random.permutation(groups).tolist():
            if group not in fold_of:
                fold_of[group] = min(range(LEAST), key=lambda fold: (taken[fold], fold))
                taken[fold_of[group]] += 1
    return np.array([fold_of[group] for group in copies.tolist()], dtype=np.int64)
