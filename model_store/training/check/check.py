"""Check a data set: what cannot be read, copies, leaks between splits, likely wrong labels and outliers.

Pictures are compared by the fc7 activations of a model if there is one, and otherwise by their colors on a grid of
16x16, which sees no shapes. Copies are also found by perceptual hashes.

Guarantees: each file is read once; the memory for each picture is 2 KB. Nothing is changed.
Out of scope: training a model for the check.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.image_files import Skipped
from model_store.prefetch import prefetch
from model_store.training.check.classifier import out_of_sample
from model_store.training.check.findings import (
    LEAST_PICTURES,
    Group,
    JudgedLabels,
    Outlier,
    Picture,
    Report,
    WrongLabel,
)
from model_store.training.check.labels import check_labels
from model_store.training.check.neighbors import nearest
from model_store.training.data.image_file import Source, load_image
from model_store.training.data.perceptual_hash import connected, near_pairs, perceptual_hash
from model_store.training.data.reader import PREFETCH, SMALL_SIDE
from model_store.training.data.sources import class_notes, require_trainable

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 [n, 256, 256, 3] -> float32 [n, 4096]
Progress = Callable[[str, int, int], None]  # (step, done, total)
NO_MODEL: Final = "colors on a grid of 16x16 (no model)"
_BATCH: Final = 16  # pictures embedded at a time
_DIMENSIONS: Final = 512
_GRID: Final = 16
_COMPARED: Final = 50_000  # pictures of different classes are compared up to this number
_LISTED: Final = 20  # one of so many labels is listed as likely wrong
_LEAST_LISTED: Final = 10
_NEIGHBORS: Final = 5
_OUTLIER_RATIO: Final = 1.5
_NEAR_RATIO: Final = 0.1  # of the median distance to the nearest picture
_SEED: Final = 0


@dataclass(slots=True)
class _Pictures:
    """The readable pictures, with what they are compared by."""

    found: list[Picture] = field(default_factory=list)
    hashes: list[NDArray[np.uint8]] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    small: list[Picture] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def copies(self) -> list[list[int]]:
        """Return the positions of the pictures in `found`, those with the same bytes together."""
        by_content: defaultdict[str, list[int]] = defaultdict(list)
        for number, sha256 in enumerate(self.sha256):
            by_content[sha256].append(number)
        return list(by_content.values())


def check_source(
    source: Source,
    *,
    decoder: Decoder,
    workers: ThreadPoolExecutor,
    embed: Embed | None,
    features: str = NO_MODEL,
    progress: Progress = lambda *_: None,
) -> Report:
    """Read all pictures of `source` and return what was found.

    embed: the fc7 activations of a model, or None. features: its name, for the report. Raises DatasetError if no
    picture can be read.
    """
    pictures = _read(source, decoder, workers, embed, progress)
    if not pictures.found:
        raise DatasetError(f"None of the pictures in {source.root} can be read.")
    problems = []
    try:
        require_trainable(source)
    except DatasetError as error:
        problems.append(str(error))
    vectors = np.concatenate(pictures.vectors)
    progress("comparing pictures", 0, 1)
    distances, neighbors = nearest(vectors, _NEIGHBORS)
    same = _same_pictures(pictures, distances, neighbors)
    labels = _judge_labels(source, pictures.found, vectors, same, progress)
    counts: dict[str, Counter[str]] = {split: Counter() for split in source.splits}
    for picture in pictures.found:
        counts[picture.split][picture.image.label] += 1
    return Report(
        source=str(source.root),
        classes=source.classes,
        counts=counts,
        skipped=tuple(pictures.skipped),
        problems=tuple(problems),
        notes=(*source.notes, *class_notes(source)),
        features=features,
        groups=_groups(pictures, same),
        labels=labels,
        outliers=_outliers(pictures.found, distances),
        small=tuple(pictures.small),
    )


def _read(
    source: Source,
    decoder: Decoder,
    workers: ThreadPoolExecutor,
    embed: Embed | None,
    progress: Progress,
) -> _Pictures:
    pictures = _Pictures(skipped=list(source.ignored))
    listed = [Picture(image, split) for split, images in source.splits.items() for image in images]
    # A random projection keeps distances to a few percent, and needs an eighth of the memory.
    projection = np.random.default_rng(_SEED).normal(0, _DIMENSIONS**-0.5, (4096, _DIMENSIONS)).astype(np.float32)
    with prefetch(partial(_load, decoder), listed, workers, PREFETCH) as results:
        done, rest = 0, iter(results)
        while batch := list(islice(rest, _BATCH)):
            pixels = []
            for picture, future in batch:
                loaded = future.result()
                if isinstance(loaded, Skipped):
                    pictures.skipped.append(loaded)
                    continue
                picture_pixels, sha256, fingerprint, side = loaded
                pixels.append(picture_pixels)
                pictures.found.append(picture)
                pictures.sha256.append(sha256)
                pictures.hashes.append(fingerprint)
                if side < SMALL_SIDE:
                    pictures.small.append(picture)
            if pixels:
                stacked = np.stack(pixels)
                pictures.vectors.append(_colors(stacked) if embed is None else embed(stacked) @ projection)
            done += len(batch)
            progress("reading", done, len(listed))
    return pictures


def _load(decoder: Decoder, picture: Picture) -> tuple[NDArray[np.uint8], str, NDArray[np.uint8], int] | Skipped:
    loaded = load_image(picture.image, decoder)
    if isinstance(loaded, Skipped):
        return loaded
    return loaded.pixels, loaded.sha256, perceptual_hash(loaded.pixels), loaded.shorter_side


def _colors(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean colors of a grid, float32 [n, 768], from 0 to 1."""
    count, side = len(pixels), pixels.shape[1] // _GRID
    grid = pixels.reshape(count, _GRID, side, _GRID, side, 3).mean((2, 4), dtype=np.float32)
    colors: NDArray[np.float32] = grid.reshape(count, -1) / np.float32(255)
    return colors


def _same_pictures(
    pictures: _Pictures, distances: NDArray[np.float32], neighbors: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return, for each picture, the first one that it is a copy of, or nearly, int64 [n]."""
    count = len(pictures.found)
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    for number, picture in enumerate(pictures.found):
        by_class[picture.image.label].append(number)
    compared: Sequence[Sequence[int]] = [range(count)] if count <= _COMPARED else list(by_class.values())
    pairs: Iterator[tuple[int, int]] = chain(
        (pair for copies in pictures.copies() for pair in pairwise(copies)),
        ((one, two) for one, two, _ in near_pairs(np.stack(pictures.hashes), compared)),
        _near_vectors(distances, neighbors),
    )
    return connected(count, pairs)


def _groups(pictures: _Pictures, same: NDArray[np.int64]) -> tuple[Group, ...]:
    """Return groups of copies and near-identical pictures, exact copies first, then the largest first."""
    copies = pictures.copies()
    near: defaultdict[int, list[int]] = defaultdict(list)
    for number, *_ in copies:
        near[int(same[number])].append(number)
    exact = [Group(tuple(pictures.found[n] for n in group), True) for group in copies if len(group) > 1]
    nearly = [Group(tuple(pictures.found[n] for n in group), False) for group in near.values() if len(group) > 1]
    return tuple(sorted(exact + nearly, key=lambda group: (not group.exact, -len(group.pictures))))


def _near_vectors(distances: NDArray[np.float32], neighbors: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of pictures whose vectors are much nearer than those of different pictures are."""
    if not distances.size:
        return
    limit = _NEAR_RATIO * float(np.median(distances[:, 0]))
    for row, column in zip(*np.nonzero(distances <= limit), strict=True):
        yield int(row), int(neighbors[row, column])


def _judge_labels(
    source: Source,
    found: Sequence[Picture],
    vectors: NDArray[np.float32],
    same: NDArray[np.int64],
    progress: Progress,
) -> JudgedLabels:
    """Judge the labels of all classes with at least `LEAST_PICTURES` pictures."""
    counts = Counter(picture.image.label for picture in found)
    judged = [label for label in source.classes if counts[label] >= LEAST_PICTURES]
    if len(judged) < 2:
        return JudgedLabels()
    index_of = {label: number for number, label in enumerate(judged)}
    rows = [row for row, picture in enumerate(found) if picture.image.label in index_of]
    labels = np.array([index_of[found[row].image.label] for row in rows], np.int64)
    probabilities = out_of_sample(vectors[rows], labels, len(judged), same[rows], partial(progress, "judging labels"))
    check = check_labels(probabilities, labels)

    def item(position: int) -> WrongLabel:
        suggested = int(check.suggested[position])
        own, other = probabilities[position, labels[position]], probabilities[position, suggested]
        return WrongLabel(found[rows[position]], judged[suggested], float(own), float(other))

    order: list[int] = check.order.tolist()
    result = JudgedLabels(
        ranking=tuple(item(position) for position in order[: -(-len(order) // 5)]),
        judged=len(rows),
        correct=int((probabilities.argmax(1) == labels).sum()),
        majority=int(np.bincount(labels).max()),
    )
    if not result.reliable:
        return result
    suspected = [position for position in order if check.suspected[position]]
    most = max(_LEAST_LISTED, len(rows) // _LISTED)
    return replace(result, wrong=tuple(item(position) for position in suspected[:most]))


def _outliers(found: Sequence[Picture], distances: NDArray[np.float32]) -> tuple[Outlier, ...]:
    if not distances.size:
        return ()
    mean = distances.mean(1)
    ratios = mean / max(float(np.median(mean)), 1e-9)
    order = np.argsort(-ratios, kind="stable")
    return tuple(Outlier(found[row], float(ratios[row])) for row in order if ratios[row] >= _OUTLIER_RATIO)
