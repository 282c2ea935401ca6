"""Choose the images for validation in a data set that has no split, and record the choice of a run.

A run that was trained on such a data set has the table `split.csv` in its folder, with absolute paths. `run_data`
returns its path, so that evaluation, export and a resumed run use the same split.

Guarantees: the same images, seed and share give the same split. Each class keeps its share as nearly as possible, and
at least one image for training. Copies and near-identical pictures stay on one side, so that validation measures what
the net does with new pictures.
Out of scope: pictures that belong together for other reasons, such as the frames of a film or the photographs of one
person. A table with a column `split` says so (table.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.errors import DatasetError
from model_store.training.data.image_file import ALL, ImageFile, Source
from model_store.training.data.perceptual_hash import connected, near_pairs
from model_store.training.data.table import LabeledPath, write_table
from model_store.training.runs.run import RunInfo

VAL_SHARE: Final = 0.2
SPLIT_FILE: Final = "split.csv"


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How images are chosen for validation. val_share: of the images, above 0 and below 1. seed: of the choice."""

    val_share: float = VAL_SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise DatasetError(f"The share of validation images is {self.val_share:g}. It must be above 0 and below 1.")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared to find copies. sha256: of the encoded image; perceptual: uint8 [32]."""

    sha256: str
    perceptual: NDArray[np.uint8]


def split_to_make(source: Source) -> str | None:
    """Return which images have to be divided: ALL, "train" if there are none for validation, or None."""
    if not source.is_split:
        return ALL
    return None if "val" in source.splits else "train"


def split_source(source: Source, fingerprints: Mapping[ImageFile, Fingerprint], rule: SplitRule) -> Source:
    """Return the source with images for training and validation.

    fingerprints: of the readable images; the others are left out. Raises DatasetError if no image could be chosen for
    validation, because every class has only one picture.
    """
    divided = split_to_make(source)
    if divided is None:
        return source
    images = [image for image in source.splits[divided] if image in fingerprints]
    groups = _near_groups(images, [fingerprints[image] for image in images])
    chosen = _choose(images, groups, rule)
    if not chosen:
        raise DatasetError(
            f"No image of {source.root} can be kept for validation: every class has only one picture, or copies of "
            "one. Add pictures."
        )
    together = [size for size in Counter(groups).values() if size > 1]
    note = f"Validation: {len(chosen):,} of {len(images):,} images, chosen at random in each class (seed {rule.seed})."
    if together:
        groups_text = f"{len(together):,} group{'s' if len(together) > 1 else ''}"
        note += f" {sum(together):,} near-identical pictures in {groups_text} stay together."
    parts = {
        "train": tuple(image for number, image in enumerate(images) if number not in chosen),
        "val": tuple(image for number, image in enumerate(images) if number in chosen),
    }
    others = {split: found for split, found in source.splits.items() if split != divided}
    return replace(source, splits=parts | others, notes=(*source.notes, note))


def _near_groups(images: Sequence[ImageFile], fingerprints: Sequence[Fingerprint]) -> list[int]:
    """Return for each image the first image that it must stay with. Copies are found in all classes, near-identical
    pictures in the same class only, because comparing all pictures of a large data set takes too long.
    """
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    by_content: defaultdict[str, list[int]] = defaultdict(list)
    for number, (image, fingerprint) in enumerate(zip(images, fingerprints, strict=True)):
        by_class[image.label].append(number)
        by_content[fingerprint.sha256].append(number)
    pairs = [(one, two) for one, two, _ in near_pairs(_stack(fingerprints), list(by_class.values()))]
    pairs += [pair for copies in by_content.values() for pair in pairwise(copies)]
    return [int(first) for first in connected(len(images), iter(pairs))]


def _stack(fingerprints: Sequence[Fingerprint]) -> NDArray[np.uint8]:
    return np.array([fingerprint.perceptual for fingerprint in fingerprints], np.uint8)


def _choose(images: Sequence[ImageFile], groups: Sequence[int], rule: SplitRule) -> set[int]:
    """Return the numbers of the images for validation. groups: the number of the group of each image."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        members[group].append(number)
    counts = Counter(image.label for image in images)
    wanted = {label: min(max(1, round(count * rule.val_share)), count - 1) for label, count in counts.items()}
    order = list(members)
    order = [order[int(position)] for position in np.random.default_rng(rule.seed).permutation(len(order))]
    chosen: set[int] = set()
    taken: Counter[str] = Counter()

    def take(group: int, most: Mapping[str, int]) -> bool:
        needed = Counter(images[number].label for number in members[group])
        if any(taken[label] + count > most[label] for label, count in needed.items()):
            return False
        chosen.update(members[group])
        taken.update(needed)
        return True

    for group in order:
        take(group, wanted)
    # A class whose groups are all larger than its share gives its smallest one, if images for training are left.
    all_but_one = {label: count - 1 for label, count in counts.items()}
    for label in (label for label, count in wanted.items() if count and not taken[label]):
        own = [group for group in order if any(images[number].label == label for number in members[group])]
        for group in sorted(own, key=lambda group: len(members[group])):
            if take(group, all_but_one):
                break
    return chosen


def labeled_paths(source: Source) -> list[LabeledPath]:
    """Return the images of a source as rows of a table."""
    return [(image.file, image.label, split) for split, images in source.splits.items() for image in images]


def write_run_split(run: Path, source: Source) -> None:
    """Record which images a run uses for training and validation. Raises OSError."""
    write_table(run / SPLIT_FILE, labeled_paths(source))


def run_data(run: Path, info: RunInfo, given: Path | None = None) -> Path:
    """Return the data set that a run was trained on: the recorded split, or the folder that it was given.

    given: another data set, which is returned unless it is the run's own.
    """
    if given is not None and given.expanduser().resolve() != Path(info.data).resolve():
        return given
    recorded = run / SPLIT_FILE
    return recorded if recorded.is_file() else Path(info.data)
