"""What to label next: the unlabeled images of an index whose labels would teach most.

Guarantees: of a large index, random samples of the unlabeled and of the labeled images are compared, and the result
says so. The same index gives the same suggestions.
Out of scope: how images are chosen (index/search/suggestions.py); storing labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.filters import Where
from index.interface import ImageIndex
from index.labels import label_of
from index.search.suggestions import Vote, choose

KEY_FIELD: Final = "fc7_key"
"""Name under which labeling tools keep the key of an image."""
_SAMPLE: Final = 4096  # images of each kind; 34 MB of vectors
_UNDECIDED: Final = 0.5  # a smaller margin is called uncertain
_READ: Final = 512  # vectors in one call
_SHOWN: Final = 40  # characters of a label in a sentence


class Reason(StrEnum):
    """Why an image is suggested."""

    UNCERTAIN = "uncertain"
    DIFFERENT = "different"
    REPRESENTATIVE = "representative"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An image to label.

    score: its use, relative to the first one's. covers: the number of compared unlabeled images that are nearer to it
    than to any labeled or better image. margin: share of the best label among its neighbors minus that of the second;
    None, like `distance` to the nearest labeled image, if there are no labels. labels: the best shares.
    """

    key: str
    reason: Reason
    text: str
    score: float
    covers: int
    margin: float | None
    distance: float | None
    labels: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Suggested images, the most useful first.

    unlabeled, labeled: the number of images. compared: how many of the unlabeled ones were compared. note: what the
    numbers do not say; "" if all images were compared.
    """

    unlabeled: int
    labeled: int
    compared: int
    note: str
    suggestions: list[Suggestion]


class _Sample:
    """A uniform random sample of a stream of keys (reservoir sampling)."""

    def __init__(self, seed: int) -> None:
        self.seen = 0
        self.items: list[tuple[str, str]] = []
        self._random = np.random.default_rng(seed)

    def add(self, key: str, label: str) -> None:
        self.seen += 1
        if len(self.items) < _SAMPLE:
            self.items.append((key, label))
        elif (place := int(self._random.integers(self.seen))) < _SAMPLE:
            self.items[place] = (key, label)


def suggest(
    index: ImageIndex,
    field: str,
    limit: int,
    *,
    where: Where | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Suggestions:
    """Return up to `limit` images that match and have no value in the metadata field, the most useful first.

    stopped: called repeatedly; once it returns True, the suggestions found so far are returned. Raises FilterError.
    """
    unlabeled, labeled, complete = _Sample(0), _Sample(1), True
    for batch in index.points(field, where=where):
        if stopped():
            complete = False
            break
        for key, value in zip(batch.keys, batch.values, strict=True):
            label = label_of(value)
            if label is not None:
                labeled.add(key, label)
            elif not _has_values(value):
                unlabeled.add(key, "")
    keys, vectors, _ = _read(index, unlabeled.items)
    _, known, labels = _read(index, labeled.items)
    chosen = choose(vectors, known, labels, limit, stopped)
    typical = np.median([c.vote.distance for c in chosen if c.vote]) if known.size and chosen else 0.0
    return Suggestions(
        unlabeled.seen,
        labeled.seen,
        len(keys),
        _note(unlabeled, labeled, complete, len(chosen) < min(limit, len(keys))),
        [_suggestion(keys[c.row], c.gain, c.covers, c.vote, float(typical)) for c in chosen],
    )


def _has_values(value: Any) -> bool:
    """Return whether a value that is no label is one nevertheless: a list of several."""
    return isinstance(value, list) and len(value) > 1


def _read(index: ImageIndex, items: Sequence[tuple[str, str]]) -> tuple[list[str], NDArray[np.float16], list[str]]:
    """Return the keys, vectors and labels of the images that still exist."""
    found: dict[str, NDArray[np.float16]] = {}
    for start in range(0, len(items), _READ):
        found |= index.existing_vectors([key for key, _ in items[start : start + _READ]])
    kept = [(key, label) for key, label in items if key in found]
    rows = np.stack([found[key] for key, _ in kept]) if kept else np.empty((0, 4096), np.float16)
    return [key for key, _ in kept], rows, [label for _, label in kept]


def _suggestion(key: str, gain: float, covers: int, vote: Vote | None, typical: float) -> Suggestion:
    if vote is None:
        text = f"No image is labeled yet. {covers:,} unlabeled images are most similar to this one."
        return Suggestion(key, Reason.REPRESENTATIVE, text, gain, covers, None, None, [])
    named = [(label if len(label) <= _SHOWN else f"{label[:_SHOWN]}...", share) for label, share in vote.shares]
    if vote.margin < _UNDECIDED:
        first, second = (f"{label} ({share:.0%})" for label, share in named[:2])
        reason, text = Reason.UNCERTAIN, f"Its labeled neighbors disagree: {first} or {second}."
    elif vote.distance > typical:
        reason = Reason.DIFFERENT
        text = f"It is unlike the labeled images: the nearest one is at distance {vote.distance:.1f}."
    else:
        reason, text = Reason.REPRESENTATIVE, f"{covers:,} unlabeled images are most similar to this one."
    return Suggestion(key, reason, text, gain, covers, vote.margin, vote.distance, vote.shares)


def _note(unlabeled: _Sample, labeled: _Sample, complete: bool, cut: bool) -> str:
    parts = []
    if not complete:
        parts.append("The time limit ended the reading of the index, so later images were not considered.")
    for sample, name in ((unlabeled, "unlabeled"), (labeled, "labeled")):
        if sample.seen > len(sample.items):
            parts.append(f"A random sample of {len(sample.items):,} of {sample.seen:,} {name} images was compared.")
    if cut:
        parts.append("The time limit ended the choice early.")
    return " ".join(parts)
