"""Write the paper's figures 3 and 4 and tables 1 and 2 for a run or a version.

    figure3.png        the kernels of the first layer, the towers side by side
    figure4-left.png   eight held-out images and the five most probable classes of each
    figure4-right.png  five of them, and the six training images nearest to each by fc7
    tables.md          the paper's tables, with the errors measured here
    report.json        the numbers behind all of them

Guarantees: the same net, images and seed give the same choice of images and the same numbers. The images are of as many
classes as possible. Images that cannot be read are skipped.
Out of scope: training; publishing; licenses. The figures contain images of the data set, whose license applies.
References: the paper, section 6.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder
from model_store.durable import write_atomic
from model_store.errors import DatasetError, ImageError
from model_store.image import views
from model_store.training.data.image_file import ImageFile
from model_store.training.evaluate import BATCH_ROWS, Predictor, SplitImages
from model_store.training.export.publish import Progress, evaluate_with_progress
from model_store.training.export.report import chromatic_shares, draw_conv1, write_json
from model_store.training.paper.figure4 import LabeledImage, bars, draw_figure4_left, draw_figure4_right, nearest
from model_store.training.paper.tables import Benchmark, markdown, paper_tables

LEFT_IMAGES: Final = 8
QUERIES: Final = 5
NEIGHBORS: Final = 6


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """The kernels of the first convolution, float32 [kernels, 3, height, width], and the number of towers."""

    name: str
    kernels: NDArray[np.float32]
    towers: int


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of a report. gallery: maximum number of training images searched in figure 4, chosen by `seed`.

    benchmark: the data set of the held-out images. evaluations: results of other nets for the tables.
    """

    seed: int = 0
    gallery: int = 5_000
    view_counts: Sequence[int] = (1,)
    benchmark: Benchmark = "other"
    evaluations: Sequence[Mapping[str, Any]] = ()


def write_paper_report(
    net: Predictor,
    first: FirstLayer,
    data: Path,
    out: Path,
    options: ReportOptions,
    *,
    splits: tuple[str, str] = ("train", "val"),
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Write all files into `out` and return the content of report.json. Errors are percentages in the tables.

    splits: the folders of `data` with the training and the held-out images. Raises DatasetError.
    """
    paper_tables(options.evaluations, options.benchmark)  # reject invalid evaluations before anything is drawn
    training, held_out = SplitImages(data, splits[0]), SplitImages(data, splits[1])
    out.mkdir(parents=True, exist_ok=True)
    title = f"{net.name}: the kernels of {first.name}"
    draw_conv1(out, first.kernels, title, towers=first.towers, file="figure3.png")
    candidates = _readable(alternate_classes(held_out.files, options.seed))
    images = [image for _, image in itertools.islice(candidates, LEFT_IMAGES)]
    if not images:
        raise _none_readable(held_out.files)
    probabilities, vectors = net.both(views(np.stack([image.pixels for image in images])))
    gallery = _embed(net, alternate_classes(training.files, options.seed)[: options.gallery], progress)
    answers = [bars(row, net.labels, image.label) for row, image in zip(probabilities, images, strict=True)]
    draw_figure4_left(out, images, answers, f"{net.name}: held-out images; red is the correct class")
    left = [
        {"label": image.label, "bars": [asdict(bar) for bar in answer]}
        for image, answer in zip(images, answers, strict=True)
    ]
    right = _figure4_right(out, net.name, images[:QUERIES], vectors[:QUERIES], gallery)
    results = [evaluate_with_progress(net, held_out, count, progress).to_dict() for count in options.view_counts]
    tables = paper_tables([*results, *options.evaluations], options.benchmark)
    shares = chromatic_shares(first.kernels, first.towers)
    numbers = {
        "model": net.name,
        "data": str(data),
        "seed": options.seed,
        "figure3": {"kernels": len(first.kernels), "chromatic_share_by_tower": shares},
        "figure4": {"answers": left} | right,
        "tables": {title: [asdict(row) for row in rows] for title, rows in tables.items()},
    }
    write_atomic(out / "tables.md", markdown(tables).encode())
    write_json(out / "report.json", numbers)
    return numbers


def alternate_classes(files: Sequence[ImageFile], seed: int) -> list[ImageFile]:
    """Return the files in random order with the classes taking turns, so that any first few are of many classes."""
    shuffled = [files[index] for index in np.random.default_rng(seed).permutation(len(files))]
    turns: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    return sorted(shuffled, key=lambda file: next(turns[file.label]))


def _figure4_right(
    out: Path,
    name: str,
    queries: Sequence[LabeledImage],
    vectors: NDArray[np.float32],
    gallery: tuple[list[ImageFile], NDArray[np.float32]],
) -> dict[str, Any]:
    files, gallery_vectors = gallery
    indices, distances = nearest(vectors, gallery_vectors, min(NEIGHBORS, len(files)))
    rows = [
        [(files[index], float(distance)) for index, distance in zip(*row, strict=True)]
        for row in zip(indices, distances, strict=True)
    ]
    with Decoder() as decoder:
        neighbors = [
            [(LabeledImage(decoder.prepare(file.read()), file.label), distance) for file, distance in row]
            for row in rows
        ]
    title = f"{name}: nearest of {len(files):,} training images, Euclidean distance of fc7"
    draw_figure4_right(out, queries, neighbors, title)
    same = [file.label == query.label for query, row in zip(queries, rows, strict=True) for file, _ in row]
    return {
        "gallery": len(files),
        "neighbors": [[{"file": str(file.file), "distance": distance} for file, distance in row] for row in rows],
        "neighbors_of_same_class": sum(same) / len(same),
    }


def _readable(files: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, LabeledImage]]:
    """Yield the files that can be read, with their images."""
    with Decoder() as decoder:
        for file in files:
            try:
                yield file, LabeledImage(decoder.prepare(file.read()), file.label)
            except (ImageError, OSError):
                continue


def _none_readable(files: Sequence[ImageFile]) -> DatasetError:
    return DatasetError(f"None of {len(files)} images can be read. The first one is {files[0].file}.")


def _embed(
    net: Predictor, files: Sequence[ImageFile], progress: Progress
) -> tuple[list[ImageFile], NDArray[np.float32]]:
    """Return the readable files and their fc7 vectors, float32 [n, neurons]."""
    embedded: list[ImageFile] = []
    vectors = []
    for start in range(0, len(files), BATCH_ROWS):
        batch = list(_readable(files[start : start + BATCH_ROWS]))
        if batch:
            embedded += [file for file, _ in batch]
            vectors.append(net.both(views(np.stack([image.pixels for _, image in batch])))[1])
        progress("embedding training images", min(start + BATCH_ROWS, len(files)), len(files))
    if not embedded:
        raise _none_readable(files)
    return embedded, np.concatenate(vectors)
