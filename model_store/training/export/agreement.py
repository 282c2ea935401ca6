"""Measure how far two ways of running the same net agree on real images.

Out of scope: deciding what is served (`openvino_engine.bf16_obstacle`, `add_precisions`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.image import CROP, views
from model_store.runtime.openvino_engine import MIN_VIEWS, bf16_support, is_available
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner, top_k
from model_store.training.evaluate import TOP, SplitImages

BATCH: Final = 16
_MOST: Final = 2_000  # images
_CENTER: Final = 4  # among the ten views
_SECONDS: Final = 30.0  # a CPU without bf16 emulates it slowly

Batches = Iterable[tuple[NDArray[np.uint8], tuple[str, ...]]]  # (pixels uint8 [n,256,256,3], labels)


def measure_bf16(version: Artifact, images: SplitImages, progress: Callable[[int, int], None]) -> dict[str, Any] | None:
    """Return how bf16 agrees with f32 on up to 2,000 random images, as in `compare`; None if it cannot be measured.

    At least 1,000 views are compared: up to ten views of an image, where there are fewer images. After that it stops
    after 30 s. `views`: of an image. `fc7_distance`: distance of the two fc7 vectors of an image, as a share of the
    distance to the nearest other image; the median. It cannot be measured without OpenVINO, on a CPU that cannot even
    emulate bf16, and on fewer than 100 images. progress: called with (done, total) images.
    """
    total = min(len(images), _MOST)
    count = -(-MIN_VIEWS // max(total, 1))
    if count > 10 or not is_available() or bf16_support() == "none":
        return None
    # The files are sorted by class, and the time may be over before the last class.
    sample = images.only(random.Random(2012).sample(images.files, total))  # noqa: S311 - not for security
    ends = time.monotonic() + _SECONDS
    kept: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = [], []

    def in_time() -> Iterator[tuple[NDArray[np.uint8], tuple[str, ...]]]:
        seen = 0
        for batch in sample.batches(BATCH):
            yield batch
            seen += len(batch[0]) * count
            if seen >= MIN_VIEWS and time.monotonic() > ends:
                return

    def keep(first: Outputs, second: Outputs) -> None:
        kept[0].append(first.fc7[::count])
        kept[1].append(second.fc7[::count])
        progress(sum(len(rows) for rows in kept[0]), total)

    def runner(arithmetic: Any) -> closing[Runner]:
        return closing(Runner(version, RunnerOptions(device="cpu", engine="openvino", arithmetic=arithmetic)))

    with runner("f32") as first, runner("bf16") as second:
        measured = compare(first, second, in_time(), keep, partial(_views, count=count))
    if measured["images"] * count < MIN_VIEWS:  # some images cannot be read
        return None
    vectors, others = (np.concatenate(rows) for rows in kept)
    return {**measured, "views": count, "fc7_distance": _relative_distance(vectors, others)}


def _views(pixels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return the center and `count` - 1 more of the paper's ten views: uint8 [n,256,256,3] -> [n*count,224,224,3]."""
    if count == 1:
        return views(pixels)
    chosen = [(_CENTER + number) % 10 for number in range(count)]
    return views(pixels, 10).reshape(-1, 10, CROP, CROP, 3)[:, chosen].reshape(-1, CROP, CROP, 3)


def compare(
    first: Runner,
    second: Runner,
    batches: Batches,
    done: Callable[[Outputs, Outputs], None],
    crop: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = views,
) -> dict[str, Any]:
    """Return how the outputs of `second` differ from those of `first`, view by view.

    `top1_agreement`: share of views with the same best class. `top5_agreement`: share of views whose best class in
    `first` is among the best `k` of `second`; `k` is five, or one less than the number of classes if that is less.
    `fc7_cosine`, `fc7_cosine_least`: mean and minimum over the views. Errors are shares of the views of images whose
    class the model knows, or None if there are none. done: called with the outputs of each batch. crop: returns the
    same number of views of each image, uint8 [n,256,256,3] -> [n*count,224,224,3]; by default the center.
    """
    labels = first.artifact.labels
    k = max(1, min(TOP, len(labels) - 1))
    index_of = {label: index for index, label in enumerate(labels)}
    images = 0
    agreement: list[tuple[bool, bool]] = []  # of each view: top-1, top-5
    cosines: list[float] = []
    wrong: list[tuple[bool, bool, bool, bool]] = []  # of each view: top-1 and top-5 of first, then of second
    for pixels, names in batches:
        inputs = crop(pixels)
        images += len(pixels)
        expected, actual = first.run(inputs), second.run(inputs)
        norms = np.linalg.norm(expected.fc7, axis=1) * np.linalg.norm(actual.fc7, axis=1)
        products = (expected.fc7 * actual.fc7).sum(axis=1)
        cosines += (products / np.maximum(norms, np.finfo(np.float32).tiny)).tolist()
        best = [top_k(outputs.probabilities, k)[0].tolist() for outputs in (expected, actual)]
        for label, a, b in zip(np.repeat(names, len(inputs) // len(pixels)), *best, strict=True):
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
        "images": images,
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
