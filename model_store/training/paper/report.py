"""What the paper shows of a net, made from a run or a version and its images: figures 3 and 4, tables 1 and 2.

    figure3.png        the first layer's kernels, a tower beside the other
    figure4-left.png   eight held-out pictures, and five answers to each
    figure4-right.png  five of them, and the six training pictures that are nearest by fc7
    tables.md          the paper's tables, and the errors measured here
    report.json        the numbers behind all of them

Promises: the same net, images and seed give the same choice of pictures and the same numbers; pictures are of as many
classes as there are; a picture that cannot be read is passed over.
Does not: train, publish; distribute pictures: what it draws is as free as the data set.
Source: the paper, section 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.durable import write_atomic
from model_store.errors import DatasetError, ImageError
from model_store.image import prepare, views
from model_store.training.data.image_file import ImageFile
from model_store.training.evaluate import BATCH_ROWS, Predictor, SplitImages, evaluate
from model_store.training.export import report
from model_store.training.paper import figure4 as figures
from model_store.training.paper.figure4 import Near, Picture
from model_store.training.paper.tables import Benchmark, markdown, paper_tables

FIGURE3_FILE: Final = "figure3.png"
TABLES_FILE: Final = "tables.md"
NUMBERS_FILE: Final = "report.json"
PICTURES: Final = 8  # figure 4, left
QUERIES: Final = 5  # figure 4, right
NEIGHBOURS: Final = 6
DEFAULT_GALLERY: Final = 5_000

Progress = Callable[[str, int, int], None]  # (step, done, in all)


class Net(Predictor, Protocol):
    """A predictor that also gives fc7: a run's net in torch, or a version as it is served."""

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """The kernels of the first convolution, float32 [kernels, 3, height, width], and the towers they are split into."""

    name: str
    kernels: NDArray[np.float32]
    towers: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to report. gallery: most training pictures among which figure 4 looks for near ones; the seed chooses.

    benchmark: which images the held-out ones are. evaluations: those of other nets, for the tables.
    """

    seed: int = 0
    gallery: int = DEFAULT_GALLERY
    view_counts: Sequence[int] = (1,)
    benchmark: Benchmark = "other"
    evaluations: Sequence[Mapping[str, Any]] = ()


def write_results(
    net: Net,
    first: FirstLayer,
    data: Path,
    out: Path,
    wanted: Wanted,
    *,
    splits: tuple[str, str] = ("train", "val"),
    progress: Progress = lambda _step, _done, _total: None,
) -> dict[str, Any]:
    """Write all files into `out` (made if missing) and return what report.json holds; errors are shares from 0 to 1.

    splits: the folders of `data` with the training and the held-out pictures. Raises DatasetError.
    """
    paper_tables(wanted.evaluations, wanted.benchmark)  # refuses what is no evaluation before anything is drawn
    training, held_out = SplitImages(data, splits[0]), SplitImages(data, splits[1])
    out.mkdir(parents=True, exist_ok=True)
    shares = report.chromatic_shares(first.kernels, first.towers)
    report.draw_conv1(
        out, first.kernels, f"{net.name}: the kernels of {first.name}", towers=first.towers, file=FIGURE3_FILE
    )
    numbers: dict[str, Any] = {
        "model": net.name,
        "data": str(data),
        "seed": wanted.seed,
        "figure3": {"kernels": len(first.kernels), "chromatic_share_by_tower": shares},
    }
    pictures = _read(spread(held_out.files, wanted.seed), PICTURES)
    probabilities, vectors = net.both(views(np.stack([picture.pixels for picture in pictures])))
    numbers["figure4"] = _figure4_left(out, net, pictures, probabilities)
    queries, embedded = pictures[:QUERIES], _embed(net, spread(training.files, wanted.seed)[: wanted.gallery], progress)
    numbers["figure4"] |= _figure4_right(out, net.name, queries, vectors[: len(queries)], embedded)
    results = [_evaluate(net, held_out, count, progress) for count in wanted.view_counts]
    tables = paper_tables([*results, *wanted.evaluations], wanted.benchmark)
    numbers["tables"] = {title: [asdict(row) for row in rows] for title, rows in tables.items()}
    write_atomic(out / TABLES_FILE, markdown(tables).encode())
    write_atomic(out / NUMBERS_FILE, (json.dumps(numbers, indent=2, ensure_ascii=False) + "\n").encode())
    return numbers


def spread(files: Sequence[ImageFile], seed: int) -> list[ImageFile]:
    """Return the files in a drawn order in which the classes take turns, so that any first few are of many classes."""
    random = np.random.default_rng(seed)
    drawn = [files[index] for index in random.permutation(len(files))]
    turns: dict[str, int] = {}
    keyed = []
    for file in drawn:
        turns[file.label] = turns.get(file.label, -1) + 1
        keyed.append((turns[file.label], file))
    return [file for _, file in sorted(keyed, key=lambda entry: entry[0])]


def _figure4_left(
    out: Path, net: Net, pictures: Sequence[Picture], probabilities: NDArray[np.float32]
) -> dict[str, Any]:
    answers = [
        figures.bars(row, net.labels, picture.label) for row, picture in zip(probabilities, pictures, strict=True)
    ]
    figures.draw_figure4_left(out, pictures, answers, f"{net.name}: held-out pictures; red is the correct class")
    return {
        "answers": [
            {"label": picture.label, "bars": [asdict(bar) for bar in answer]}
            for picture, answer in zip(pictures, answers, strict=True)
        ]
    }


def _figure4_right(
    out: Path,
    name: str,
    queries: Sequence[Picture],
    vectors: NDArray[np.float32],
    searched: tuple[list[ImageFile], NDArray[np.float32]],
) -> dict[str, Any]:
    gallery, gallery_vectors = searched
    indices, distances = figures.nearest(vectors, gallery_vectors, min(NEIGHBOURS, len(gallery)))
    rows = [
        [(gallery[index], float(distance)) for index, distance in zip(row, far, strict=True)]
        for row, far in zip(indices, distances, strict=True)
    ]
    near = [[Near(_read([file], 1)[0], distance) for file, distance in row] for row in rows]
    title = f"{name}: nearest of {len(gallery):,} training pictures, Euclidean distance of fc7"
    figures.draw_figure4_right(out, queries, near, title)
    same = [file.label == query.label for query, row in zip(queries, rows, strict=True) for file, _ in row]
    return {
        "gallery": len(gallery),
        "neighbours": [[{"file": str(file.file), "distance": distance} for file, distance in row] for row in rows],
        "neighbours_of_the_querys_class": sum(same) / len(same),
    }


def _read(files: Sequence[ImageFile], count: int) -> list[Picture]:
    pictures: list[Picture] = []
    for file in files:
        if len(pictures) == count:
            break
        try:
            pictures.append(Picture(prepare(file.read()), file.label))
        except (ImageError, OSError):
            continue
    if not pictures:
        raise DatasetError(f"none of {len(files)} pictures can be read, {files[0].file} for one")
    return pictures


def _embed(net: Net, files: Sequence[ImageFile], progress: Progress) -> tuple[list[ImageFile], NDArray[np.float32]]:
    """Return the readable files and their fc7 vectors, float32 [n, neurons]."""
    kept: list[ImageFile] = []
    vectors = []
    for start in range(0, len(files), BATCH_ROWS):
        batch = []
        for file in files[start : start + BATCH_ROWS]:
            try:
                batch.append((file, prepare(file.read())))
            except (ImageError, OSError):
                continue
        if batch:
            kept += [file for file, _ in batch]
            vectors.append(net.both(views(np.stack([pixels for _, pixels in batch])))[1])
        progress("training pictures", min(start + BATCH_ROWS, len(files)), len(files))
    if not kept:
        raise DatasetError(f"none of {len(files)} training pictures can be read, {files[0].file} for one")
    return kept, np.concatenate(vectors)


def _evaluate(net: Net, images: SplitImages, count: int, progress: Progress) -> dict[str, Any]:
    done = 0

    def counted(more: int) -> None:
        nonlocal done
        done += more
        progress(f"held-out pictures, {count} view{'s' if count > 1 else ''}", done, len(images))

    return evaluate([net], images, view_count=count, progress=counted).to_dict()
