"""Measure how often a net, or the average of several, is wrong: top-1 and top-5 error, confusion, per class.

Promises: every image is counted once, as seen or as skipped with the reason; views are averaged after the softmax
(section 4.1), and so are nets (section 6); ties are broken as in serving (`top_k`); classes are matched by label.
Does not: train, print, or keep images in memory.
Source: the paper, sections 1 (top-5), 4.1 and 6.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.cores import usable_cores
from model_store.errors import DatasetError, ImageError
from model_store.image import CROP, PREPARATION, SIZE, find_images, prepare, views
from model_store.runtime.runner import Runner, average_views, top_k
from model_store.training.data.dataset import Skipped, read_part
from model_store.training.data.shards import is_sharded, read_entries, read_folder
from model_store.training.nets.alexnet import AlexNet

TOP: Final = 5
BATCH_ROWS: Final = 40  # views run at once: enough for full speed on two cores, and four images of ten views
_AHEAD: Final = 32  # images decoded before they are asked for


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image's file and the name of its class."""

    path: Path
    label: str
    offset: int = 0  # where it begins in the file, which is a shard then
    size: int | None = None  # bytes; None: the whole file

    def read(self) -> bytes:
        """Return the image's bytes. Raises OSError."""
        return read_part(self.path, self.offset, self.size)


class SplitImages:
    """The images of `<root>/<split>/<class>/*`, or of a split of prepared shards, decoded while they are iterated over.

    Unlike `open_dataset` it needs no second split and keeps no pixels, so a test set of any size will do. After a whole
    iteration `skipped` lists what could not be read, and `sha256` identifies the images that were.
    """

    def __init__(self, root: Path, split: str = "val") -> None:
        """List the files. Raises DatasetError for a folder that is missing or has no class folders or no images."""
        self.skipped: list[Skipped] = []
        self.sha256 = ""
        if is_sharded(root):
            self.folder, folder = root, read_folder(root)
            entries = read_entries(folder, split)
            self.files = [LabelledFile(e.path, folder.classes[e.label], e.offset, e.size) for e in entries]
            return
        self.folder = root / split
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder} is no folder: images are expected as {self.folder}/<class>/*")
        classes = sorted(entry for entry in self.folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
        self.files = [LabelledFile(path, folder.name) for folder in classes for path in find_images(folder)]
        if not self.files:
            raise DatasetError(f"{self.folder} has no images in class folders: they are expected as <class>/*")

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], str]]:
        """Yield prepared pixels, uint8 [256, 256, 3], and label, in the order of `files`."""
        self.skipped.clear()
        digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
        with ThreadPoolExecutor(usable_cores(), "decode") as workers:
            rest = iter(self.files)
            waiting = deque((file, workers.submit(_read, file)) for file in islice(rest, _AHEAD))
            while waiting:
                file, future = waiting.popleft()
                waiting.extend((file, workers.submit(_read, file)) for file in islice(rest, 1))
                read = future.result()
                if isinstance(read, Skipped):
                    self.skipped.append(read)
                    continue
                pixels, sha256 = read
                digest.update(f"{file.path.relative_to(self.folder).as_posix()}\0{sha256}\n".encode())
                yield pixels, file.label
        self.sha256 = digest.hexdigest()

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return at most `count` readable images spread over all classes, prepared, uint8 [n, 256, 256, 3].

        Raises DatasetError when none of those can be read.
        """
        step = max(1, len(self.files) // count)
        read = [_read(file) for file in self.files[::step][:count]]
        pixels = [entry[0] for entry in read if not isinstance(entry, Skipped)]
        if not pixels:
            raise DatasetError(f"of {len(read)} images tried in {self.folder} none can be read: {read[0]}")
        return np.stack(pixels)


def _read(file: LabelledFile) -> tuple[NDArray[np.uint8], str] | Skipped:
    try:
        content = file.read()
        return prepare(content), hashlib.sha256(content).hexdigest()
    except (ImageError, OSError) as error:
        return Skipped(file.path, str(error))


class Predictor(Protocol):
    """What can be evaluated: a net in torch, a published version, a graph that is about to become one."""

    @property
    def name(self) -> str:
        """How reports call it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, 224, 224, 3] -> float32 [n, classes]."""


@dataclass(frozen=True, slots=True)
class TorchPredictor:
    """A net in torch, in float32, with its mean image (float32 [256, 256, 3])."""

    name: str
    labels: tuple[str, ...]
    net: AlexNet
    mean: NDArray[np.float32]

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""
        edge = (SIZE - CROP) // 2
        centred = pixels - self.mean[edge : edge + CROP, edge : edge + CROP]
        with torch.inference_mode():
            logits, fc7 = self.net.eval().forward_both(torch.from_numpy(centred).permute(0, 3, 1, 2).contiguous())
            return logits.softmax(1).numpy(), fc7.numpy()

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, 224, 224, 3] -> float32 [n, classes]."""
        return self.both(pixels)[0]


@dataclass(frozen=True, slots=True)
class RunnerPredictor:
    """A published version, run as it is served."""

    runner: Runner

    @property
    def name(self) -> str:
        """Name and version: "solar:1"."""
        return self.runner.artifact.id

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of its manifest."""
        return self.runner.artifact.labels

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""
        outputs = self.runner.run(pixels)
        return outputs.probabilities, outputs.fc7

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, 224, 224, 3] -> float32 [n, classes]."""
        return self.both(pixels)[0]


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class: its images that were seen, and the share of them that was wrong (None without images)."""

    label: str
    images: int
    top1_error: float | None
    top5_error: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out. Counts of images, int64.

    confusion: [classes, classes]; row i, column j: images of class i for which class j was the most probable.
    top5_wrong: [classes]; images of class i whose label was not among the five most probable (of fewer: among all).
    """

    models: tuple[str, ...]
    labels: tuple[str, ...]
    views: int
    confusion: NDArray[np.int64]
    top5_wrong: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    data: str  # the folder of the split
    data_sha256: str  # over the paths and contents of the images seen

    @property
    def seen(self) -> int:
        """Images that were classified."""
        return int(self.confusion.sum())

    @property
    def top1_error(self) -> float:
        """Share of the images seen, 0 to 1, whose most probable class is not their label."""
        return 1 - float(np.trace(self.confusion)) / self.seen

    @property
    def top5_error(self) -> float:
        """Share of the images seen, 0 to 1, whose label is not among the five most probable classes."""
        return float(self.top5_wrong.sum()) / self.seen

    @property
    def majority_error(self) -> float:
        """The top-1 error of always answering the most frequent class: what a net must beat to know anything."""
        return 1 - float(self.confusion.sum(axis=1).max()) / self.seen

    def per_class(self) -> list[ClassResult]:
        """Return the errors of every class, in the order of the labels."""
        results = []
        for index, label in enumerate(self.labels):
            images = int(self.confusion[index].sum())
            wrong = images - int(self.confusion[index, index])
            top5 = int(self.top5_wrong[index])
            results.append(
                ClassResult(label, images, wrong / images if images else None, top5 / images if images else None)
            )
        return results

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON types; errors are shares from 0 to 1."""
        return {
            "models": list(self.models),
            "views": self.views,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images_seen": self.seen,
            "images_skipped": len(self.skipped),
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "majority_class_error": self.majority_error,
            "per_class": [
                {"label": c.label, "images": c.images, "top1_error": c.top1_error, "top5_error": c.top5_error}
                for c in self.per_class()
            ],
            "confusion": self.confusion.tolist(),
            "skipped": [{"file": str(skip.path), "reason": skip.reason} for skip in self.skipped],
        }


def evaluate(
    predictors: Sequence[Predictor],
    images: SplitImages,
    *,
    view_count: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Classify `images` by the average of all `predictors`, and count.

    view_count: 1 (the centre) or 10 (section 4.1).
    progress: called with the number of images counted since its last call.
    Raises DatasetError when no image can be read, one has a label that no net knows, or the nets' classes differ.
    """
    labels = predictors[0].labels
    orders = [_order(predictor, labels) for predictor in predictors]
    index_of = {label: index for index, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    top5_wrong = np.zeros(len(labels), np.int64)
    batch = max(1, BATCH_ROWS // view_count)
    for pixels, names in _batches(images, batch):
        truth = np.array([_index(name, index_of) for name in names])
        rows = views(pixels, view_count)
        total = np.zeros((len(truth), len(labels)), np.float32)
        for predictor, order in zip(predictors, orders, strict=True):
            total += average_views(predictor.probabilities(rows)[:, order], view_count)
        # The sum ranks as the mean does.
        best, _ = top_k(total, min(TOP, len(labels)))
        np.add.at(confusion, (truth, best[:, 0]), 1)
        np.add.at(top5_wrong, truth, (best != truth[:, None]).all(axis=1))
        progress(len(truth))
    if not confusion.any():
        first = images.skipped[0]
        raise DatasetError(
            f"none of the {len(images)} images in {images.folder} can be read; {first.path}: {first.reason}"
        )
    return Evaluation(
        models=tuple(predictor.name for predictor in predictors),
        labels=labels,
        views=view_count,
        confusion=confusion,
        top5_wrong=top5_wrong,
        skipped=tuple(images.skipped),
        data=str(images.folder),
        data_sha256=images.sha256,
    )


def _order(predictor: Predictor, labels: tuple[str, ...]) -> list[int]:
    """Return where each of `labels` is among the predictor's."""
    if set(predictor.labels) != set(labels):
        difference = ", ".join(sorted(set(predictor.labels) ^ set(labels))[:8])
        raise DatasetError(
            f"{predictor.name} has other classes than the first net, so they cannot be averaged: {difference}"
        )
    return [predictor.labels.index(label) for label in labels]


def _index(label: str, index_of: dict[str, int]) -> int:
    if label not in index_of:
        known = ", ".join(list(index_of)[:20])
        raise DatasetError(f"the data have a class {label!r} that the net does not know; it knows: {known}")
    return index_of[label]


def _batches(images: SplitImages, size: int) -> Iterator[tuple[NDArray[np.uint8], tuple[str, ...]]]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        pixels, names = zip(*batch, strict=True)
        yield np.stack(pixels), names
