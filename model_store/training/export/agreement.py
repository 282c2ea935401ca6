"""Measure how far two ways of running the same net agree on real images.

Out of scope: deciding what is served (`openvino_engine.agrees_in_bf16`, `add_precisions`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.image import views
from model_store.runtime.openvino_engine import is_available
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner, top_k
from model_store.training.evaluate import TOP, SplitImages

BATCH: Final = 16
_FEWEST: Final = 100  # images; fewer say nothing about one image in a thousand
_MOST: Final = 2_000
_SECONDS: Final = 30.0  # a CPU without bf16 emulates it slowly

Batches = Iterable[tuple[NDArray[np.uint8], tuple[str, ...]]]  # (pixels uint8 [n,256,256,3], labels)


def measure_bf16(version: Artifact, images: SplitImages, progress: Callable[[int, int], None]) -> dict[str, Any] | None:
    """Return how bf16 agrees with f32 on up to 2,000 images, as in `compare`; None if it cannot be measured.

    `fc7_distance`: distance of the two fc7 vectors of an image, as a share of the distance to the nearest other image;
    the median. It cannot be measured without OpenVINO, on a CPU that cannot even emulate bf16, and on fewer than 100
    images. progress: called with (done, total) images.
    """
    total = min(len(images), _MOST)
    if total < _FEWEST or not is_available():
        return None
    ends = time.monotonic() + _SECONDS
    kept: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = [], []

    def in_time() -> Iterator[tuple[NDArray[np.uint8], tuple[str, ...]]]:
        for batch in islice(images.batches(BATCH), -(-total // BATCH)):
            yield batch
            if time.monotonic() > ends:
                return

    def keep(first: Outputs, second: Outputs) -> None:
        kept[0].append(first.fc7)
        kept[1].append(second.fc7)
        progress(sum(len(rows) for rows in kept[0]), total)

    def runner(arithmetic: Any) -> closing[Runner]:
        return closing(Runner(version, RunnerOptions(device="cpu", engine="openvino", arithmetic=arithmetic)))

    with runner("f32") as first, runner("bf16") as second:
        measured = compare(first, second, in_time(), keep)
    vectors, others = (np.concatenate(rows) for rows in kept)
    if measured["images"] < _FEWEST or np.array_equal(vectors, others):
        return None
    return {**measured, "fc7_distance": _relative_distance(vectors, others)}


def compare(
    first: Runner, second: Runner, batches: Batches, done: Callable[[Outputs, Outputs], None]
) -> dict[str, Any]:
    """Return how the outputs of `second` differ from those of `first`, for one view per image.

    `top1_agreement`: share of images with the same best class. `top5_agreement`: share of images whose best class in
    `first` is among the best `k` of `second`; `k` is five, or one less than the number of classes if that is less.
    `fc7_cosine`, `fc7_cosine_least`: mean and minimum over the images. Errors are shares of the images whose class the
    model knows, or None if there are none. done: called with the outputs of each batch.
    """
    labels = first.artifact.labels
    k = max(1, min(TOP, len(labels) - 1))
    index_of = {label: index for index, label in enumerate(labels)}
    agreement: list[tuple[bool, bool]] = []  # of each image: top-1, top-5
    cosines: list[float] = []
    wrong: list[tuple[bool, bool, bool, bool]] = []  # of each image: top-1 and top-5 of first, then of second
    for pixels, names in batches:
        expected, actual = first.run(views(pixels)), second.run(views(pixels))
        norms = np.linalg.norm(expected.fc7, axis=1) * np.linalg.norm(actual.fc7, axis=1)
        products = (expected.fc7 * actual.fc7).sum(axis=1)
        cosines += (products / np.maximum(norms, np.finfo(np.float32).tiny)).tolist()
        best = [top_k(outputs.probabilities, k)[0].tolist() for outputs in (expected, actual)]
        for label, a, b in zip(names, *best, strict=True):
            agreement.append((a[0] == b[0], a[0] in b))
            if (index := index_of.get(label)) is not None:
                wrong.append((a[0] != index, index not in a, b[0] != index, index not in b))
        done(expected, actual)
    top1, top5 = np.mean(agreement, axis=0).tolist()
    errors: list[float | None] = [None] * 4
    if wrong:
        before1, before5, after1, after5 = np.mean(wrong, axis=0).tolist()
        errors = [after1, after5, after1 - before1, after5 - before5]
    error_names = ("top1_error", "top5_error", "top1_error_change", "top5_error_change")
    return {
        "images": len(agreement),
        "k": k,
        "top1_agreement": top1,
        "top5_agreement": top5,
        "fc7_cosine": float(np.mean(cosines)),
        "fc7_cosine_least": min(cosines),
        **dict(zip(error_names, errors, strict=True)),
    }


def _relative_distance(vectors: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Return the median distance of the pairs of rows as a share of the distance to the nearest other row of `others`.

    vectors, others: float32 [n,4096].
    """
    norms = np.square(vectors).sum(axis=1)[:, None] + np.square(others).sum(axis=1)[None]
    squares = np.maximum(norms - 2 * vectors @ others.T, 0)
    np.fill_diagonal(squares, np.inf)
    nearest = np.sqrt(squares.min(axis=1))
    own = np.linalg.norm(vectors - others, axis=1)
    return float(np.median(own / np.maximum(nearest, np.finfo(np.float32).tiny)))
