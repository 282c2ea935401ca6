"""Measure a net, or the average of several nets: top-1, top-5, confusion matrix, figures by class, calibration.

Guarantees: every image is counted once, either as seen or as skipped with the reason. Views (section 4.1) and nets
(section 6) are averaged after the softmax. Ties are broken as in serving (`top_k`). Classes are matched by label.
References: the paper, sections 1 (top-5), 4.1 and 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.classes.figures import FigureCounter, Figures
from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.errors import DatasetError
from model_store.image import CROP, PREPARATION, SIZE, views
from model_store.image_files import SkipKind, Skipped
from model_store.prefetch import prefetch
from model_store.runtime.runner import Runner, average_views, top_k
from model_store.training.data.image_file import ImageFile, load_image
from model_store.training.data.reader import PREFETCH
from model_store.training.data.sources import images_of_split
from model_store.training.nets.alexnet import AlexNet

TOP: Final = 5
BATCH_ROWS: Final = 40  # views per batch: enough for full speed on two cores, and a multiple of ten views


# Called with prepared pixels uint8 [n, 256, 256, 3], true classes int64 [n], and probabilities float32 [n, classes].
Observer = Callable[[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]], None]


class SplitImages:
    """The images of a split of a data set of any form (sources.py), decoded during iteration.

    Unlike `open_dataset`, this needs only one split and keeps no pixels, so a test set can have any size. After a
    complete iteration, `skipped` lists the files that were not used, `names` the others, and `sha256` identifies these.
    """

    def __init__(self, root: Path, split: str = "val", limits: DecodeLimits | None = None) -> None:
        """List the images. split: "all" takes every image. limits: of decoding.

        Raises DatasetError if there are none, TableError.
        """
        self._limits = limits
        self.skipped: list[Skipped] = []
        self.names: list[str] = []
        self.sha256 = ""
        self.folder, files, ignored = images_of_split(root, split)
        self.files = list(files)
        self._not_images = [item for item in ignored if item.kind is not SkipKind.HIDDEN]
        self._prefix = f"{split}/"

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], str]]:
        """Yield (prepared pixels uint8 [256, 256, 3], label) in the order of `files`."""
        self.skipped, self.names = list(self._not_images), []
        digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
        with (
            Decoder(self._limits) as decoder,
            prefetch(partial(load_image, decoder=decoder), self.files, usable_cores(), PREFETCH) as results,
        ):
            for image, future in results:
                loaded = future.result()
                if isinstance(loaded, Skipped):
                    self.skipped.append(loaded)
                    continue
                name = image.name.removeprefix(self._prefix)
                digest.update(f"{name}\0{loaded.sha256}\n".encode())
                self.names.append(name)
                yield loaded.pixels, image.label
        self.sha256 = digest.hexdigest()

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.uint8], tuple[str, ...]]]:
        """Yield (pixels uint8 [n, 256, 256, 3], labels) for `size` images at a time; the last batch can be smaller."""
        remaining = iter(self)
        while batch := list(islice(remaining, size)):
            pixels, labels = zip(*batch, strict=True)
            yield np.stack(pixels), labels

    def only(self, files: Sequence[ImageFile]) -> SplitImages:
        """Return the same split with only these of its files."""
        other = copy(self)
        other.files = list(files)
        return other

    def spread(self, count: int) -> SplitImages:
        """Return the same split with at most `count` of its files, spread over all classes."""
        kept = min(count, len(self))
        return self.only([self.files[number * len(self) // kept] for number in range(kept)])

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return at most `count` images spread over all classes, prepared, uint8 [n, 256, 256, 3].

        Images that cannot be read are left out. Raises DatasetError if none can be read.
        """
        step = max(1, len(self.files) // count)
        with Decoder(self._limits) as decoder:
            tried = [load_image(image, decoder) for image in self.files[::step][:count]]
        pixels = [loaded.pixels for loaded in tried if not isinstance(loaded, Skipped)]
        if not pixels:
            first = next(loaded for loaded in tried if isinstance(loaded, Skipped))
            raise DatasetError(
                f"None of the {len(tried)} sampled images in {self.folder} can be read. "
                f"The first one is {first.path}: {first.reason}"
            )
        return np.stack(pixels)


class Predictor(Protocol):
    """A net that can be evaluated. `name` is shown in reports. `labels` are in the order of the probabilities."""

    name: str
    labels: tuple[str, ...]

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Crops, uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""


@dataclass(slots=True)
class TorchPredictor:
    """A net in torch (float32), on any device, with its mean image, float32 [256, 256, 3].

    temperature: divides the logits.
    """

    name: str
    labels: tuple[str, ...]
    net: AlexNet
    mean: NDArray[np.float32]
    temperature: float = 1.0

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""
        edge = (SIZE - CROP) // 2
        centered = torch.from_numpy(pixels - self.mean[edge : edge + CROP, edge : edge + CROP])
        images = centered.permute(0, 3, 1, 2).contiguous().to(self.net.fc8.weight.device)
        with torch.inference_mode():
            logits, fc7 = self.net.eval().forward_both(images)
            return (logits / self.temperature).softmax(1).cpu().numpy(), fc7.cpu().numpy()


class RunnerPredictor:
    """A published version, run as in serving. Its name is like "solar:1"."""

    def __init__(self, runner: Runner) -> None:
        self.name, self.labels, self._runner = runner.artifact.id, runner.artifact.labels, runner

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""
        outputs = self._runner.run(pixels)
        return outputs.probabilities, outputs.fc7


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    top5_wrong: int64 [classes]; the number of images of each class whose label was not among the five most probable.
    """

    models: tuple[str, ...]
    views: int
    figures: Figures
    top5_wrong: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    data: str  # the folder of the split
    data_sha256: str  # over the paths and contents of the classified images

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the rows of the confusion matrix."""
        return self.figures.labels

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The confusion matrix of the figures."""
        return self.figures.confusion

    @property
    def seen(self) -> int:
        """The number of classified images."""
        return self.figures.images

    @property
    def top1_error(self) -> float:
        """Share of the images (0 to 1) whose most probable class is not their label."""
        return 1 - self.figures.top1_accuracy

    @property
    def top5_error(self) -> float:
        """Share of the images (0 to 1) whose label is not among the five most probable classes."""
        return float(self.top5_wrong.sum()) / self.seen

    def top5_errors(self) -> list[float | None]:
        """Return the top-5 error of every class, in the order of the labels. None: the class has no images."""
        counts = self.confusion.sum(axis=1).tolist()
        return [wrong / count if count else None for wrong, count in zip(self.top5_wrong.tolist(), counts, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types. Errors are shares from 0 to 1."""
        figures = self.figures.to_dict()
        for entry, error in zip(figures["per_class"], self.top5_errors(), strict=True):
            entry["top5_error"] = error
        return {
            "models": list(self.models),
            "views": self.views,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images_seen": self.seen,
            "images_skipped": len(self.skipped),
            "top5_error": self.top5_error,
            **figures,
            "confusion": self.confusion.tolist(),
            "skipped": [{"file": skip.path, "reason": skip.reason, "kind": skip.kind} for skip in self.skipped],
        }


def evaluate(
    predictors: Sequence[Predictor],
    images: SplitImages,
    *,
    view_count: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    observe: Observer = lambda *_: None,
) -> Evaluation:
    """Classify `images` by the average of all `predictors`, and count the errors.

    view_count: 1 (the center) or 10 (section 4.1).
    progress: called with the number of images counted since its last call. observe: called with each batch.
    Raises DatasetError if no image can be read, if a label is not a class of the nets, or if their classes differ.
    """
    labels = predictors[0].labels
    orders = [_class_order(predictor, labels) for predictor in predictors]
    index_of = {label: index for index, label in enumerate(labels)}
    counter = FigureCounter(len(labels))
    top5_wrong = np.zeros(len(labels), np.int64)
    for pixels, names in images.batches(max(1, BATCH_ROWS // view_count)):
        truth = np.array([_index(name, index_of) for name in names])
        rows = views(pixels, view_count)
        total = np.zeros((len(truth), len(labels)), np.float32)
        for predictor, order in zip(predictors, orders, strict=True):
            total += average_views(predictor.both(rows)[0][:, order], view_count)
        observe(pixels, truth, total / np.float32(len(predictors)))
        # The sum gives the same ranking as the mean.
        best, sums = top_k(total, min(TOP, len(labels)))
        counter.add(truth, best[:, 0], sums[:, 0] / len(predictors))
        np.add.at(top5_wrong, truth, (best != truth[:, None]).all(axis=1))
        progress(len(truth))
    if not counter.confusion.any():
        first = next(item for item in images.skipped if item.kind is not SkipKind.NOT_AN_IMAGE)
        raise DatasetError(
            f"None of the {len(images)} images in {images.folder} can be read, for example {first.path}: {first.reason}"
        )
    return Evaluation(
        models=tuple(predictor.name for predictor in predictors),
        views=view_count,
        figures=counter.figures(labels),
        top5_wrong=top5_wrong,
        skipped=tuple(images.skipped),
        data=str(images.folder),
        data_sha256=images.sha256,
    )


def _class_order(predictor: Predictor, labels: tuple[str, ...]) -> list[int]:
    """Return the position of each of `labels` among the predictor's classes."""
    if set(predictor.labels) != set(labels):
        difference = ", ".join(sorted(set(predictor.labels) ^ set(labels))[:8])
        raise DatasetError(
            f"{predictor.name} cannot be averaged with the first net, because their classes differ: {difference}."
        )
    return [predictor.labels.index(label) for label in labels]


def _index(label: str, index_of: dict[str, int]) -> int:
    if label not in index_of:
        known = ", ".join(list(index_of)[:20])
        raise DatasetError(f"The data has class {label!r}, which the net does not have. Classes of the net: {known}.")
    return index_of[label]
