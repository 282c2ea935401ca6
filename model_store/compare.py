"""Compare two versions on the same images: agreement, errors and speed.

Guarantees: both versions see the same pixels. Every image is counted as compared, or as skipped with a reason. Classes
are matched by label, and ties are broken as in serving (`top_k`). Speed covers only inference, in turns.
Out of scope: a verdict on which version is better. Nothing is changed, and torch is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError, ImageError
from model_store.image import views
from model_store.image_files import SkipKind, Skipped, escape_name, find_images
from model_store.runtime.runner import Outputs, Runner, top_k

_TOP = 5


@dataclass(slots=True)
class Side:
    """Results of one version. The errors count `labelled` images; `seconds` is the inference time for all images."""

    model: str
    wrong_top1: int = 0
    wrong_top5: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Comparison:
    """Result of a comparison.

    same_top1: images with the same most probable label. same_top5: images with the same set of five labels.
    labelled: images whose folder has the name of a class that both versions know. cosines: of the two fc7 vectors of
    each image, if both versions have the same architecture. skipped: the files that were not compared.
    """

    sides: tuple[Side, Side]
    batch: int
    images: int = 0
    same_top1: int = 0
    same_top5: int = 0
    labelled: int = 0
    cosines: list[float] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def compare(
    first: Runner, second: Runner, folder: Path, *, batch: int = 16, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Run both versions on every image in `folder` and its subfolders. Calls progress(done, total) after each batch.

    Raises DatasetError if no image can be read, RunnerError.
    """
    skipped: list[Skipped] = []
    paths = list(find_images(folder, skipped.append))
    skipped = [item for item in skipped if item.kind is not SkipKind.HIDDEN]
    runners = (first, second)
    for runner in runners:
        runner.warm_up((1, batch))
    result = Comparison((Side(first.artifact.id), Side(second.artifact.id)), batch, skipped=skipped)
    comparable = first.artifact.manifest.architecture == second.artifact.manifest.architecture
    known = set(first.artifact.labels) & set(second.artifact.labels)
    for start in range(0, len(paths), batch):
        pixels, labels = _read(paths[start : start + batch], known, result)
        if pixels:
            batch_views = views(np.stack(pixels))
            # Alternate which version runs first, so that other load on the machine affects both equally.
            order = (0, 1) if (start // batch) % 2 == 0 else (1, 0)
            outputs: dict[int, Outputs] = {}
            for number in order:
                started = time.perf_counter()
                outputs[number] = runners[number].run(batch_views)
                result.sides[number].seconds += time.perf_counter() - started
            _count(result, runners, (outputs[0], outputs[1]), labels)
            if comparable:
                result.cosines += _cosines(outputs[0].fc7, outputs[1].fc7)
        if progress is not None:
            progress(min(start + batch, len(paths)), len(paths))
    if not result.images:
        raise DatasetError(f"{folder} has no readable image, so there is nothing to compare. Check the path.")
    return result


def _read(
    paths: Sequence[Path], known: set[str], result: Comparison
) -> tuple[list[NDArray[np.uint8]], list[str | None]]:
    pixels, labels = [], []
    with Decoder() as decoder:
        for path in paths:
            try:
                pixels.append(decoder.prepare(path.read_bytes()))
            except (ImageError, OSError) as error:
                result.skipped.append(Skipped.of(path, error))
                continue
            label = escape_name(path.parent.name)
            labels.append(label if label in known else None)
    return pixels, labels


def _count(
    result: Comparison, runners: tuple[Runner, Runner], outputs: tuple[Outputs, Outputs], labels: list[str | None]
) -> None:
    named = []
    for runner, output in zip(runners, outputs, strict=True):
        indices, _ = top_k(output.probabilities, min(_TOP, runner.classes))
        named.append([[runner.artifact.labels[index] for index in row] for row in indices.tolist()])
    for first, second, label in zip(*named, labels, strict=True):
        result.images += 1
        result.same_top1 += first[0] == second[0]
        result.same_top5 += set(first) == set(second)
        if label is not None:
            result.labelled += 1
            for side, found in zip(result.sides, (first, second), strict=True):
                side.wrong_top1 += found[0] != label
                side.wrong_top5 += label not in found


def _cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> list[float]:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("ij,ij->i", first, second)
    return [float(product / length) if length else 0.0 for product, length in zip(products, lengths, strict=True)]
