"""Read a data set from class folders: `train/<class>/*` and `val/<class>/*`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.errors import DatasetError, ImageError
from model_store.image import PREPARATION, SIZE, SUFFIXES, find_images, prepare
from model_store.training.data.dataset import (
    IMAGE_BYTES,
    SPLITS,
    Dataset,
    Duplicate,
    ImageSet,
    Progress,
    R,
    Skipped,
    Split,
    T,
)
from model_store.training.statistics import Sums, channel_sums


@dataclass(frozen=True, slots=True)
class Sample:
    """One file of a class folder. `label` is an index into the folder's classes."""

    path: Path
    label: int

    def read(self) -> bytes:
        """Return the file's bytes. Raises OSError."""
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """What was found under `root`, before any file was opened. Classes are in alphabetical order."""

    root: Path
    classes: tuple[str, ...]
    samples: Mapping[Split, tuple[Sample, ...]]
    ignored: tuple[Skipped, ...]  # files in class folders that no image has the suffix of


def find_class_folders(root: Path) -> ClassFolders:
    """List the classes and files of `root`. A class is a folder's name, the same ones in both splits.

    Raises DatasetError for a folder that is missing, has no classes, or has a class without images in a split.
    """
    names: dict[Split, list[str]] = {}
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is no folder: images are expected as {root}/train/<class>/* and {root}/val/<class>/*. "
                "fc7 data demo DIR makes an example"
            )
        names[split] = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not names[split]:
            raise DatasetError(f"{folder} has no class folders: one folder a class is expected, as {folder}/<class>/*")
    if names["train"] != names["val"]:
        only = sorted(set(names["train"]) ^ set(names["val"]))
        raise DatasetError(
            f"train and val in {root} must have the same classes; only one of them has: {', '.join(only)}"
        )
    samples: dict[Split, tuple[Sample, ...]] = {}
    ignored: list[Skipped] = []
    for split in SPLITS:
        found = []
        for label, name in enumerate(names[split]):
            files = list(find_images(root / split / name))
            others = set(_visible_files(root / split / name)).difference(files)
            ignored += [Skipped(path, f"not an image's suffix ({' '.join(SUFFIXES)})") for path in sorted(others)]
            if not files:
                raise DatasetError(f"the class {name!r} has no images in {root / split / name}: add some or remove it")
            found += [Sample(path, label) for path in files]
        samples[split] = tuple(found)
    return ClassFolders(root, tuple(names["train"]), samples, tuple(ignored))


def _visible_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def open_dataset(
    root: Path, *, memory_budget: int, workers: ThreadPoolExecutor, progress: Progress | None = None
) -> Dataset:
    """Read every image under `root` once: prepare it, hash it, count it into the training set's statistics.

    memory_budget: bytes that prepared pixels may take (196,608 an image); when all of them do not fit, none are kept.
    Raises DatasetError as `find_class_folders`, and when a class of a split has no readable image.
    """
    folders = find_class_folders(root)
    total = sum(len(samples) for samples in folders.samples.values())
    keep = total * IMAGE_BYTES <= memory_budget
    skipped = list(folders.ignored)
    contents: dict[Split, dict[str, Path]] = {"train": {}, "val": {}}
    digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
    sums = Sums()
    sets: dict[Split, ImageSet] = {}
    done = 0
    for split in SPLITS:
        samples = folders.samples[split]
        pixels = np.empty((len(samples), SIZE, SIZE, 3), np.uint8) if keep else None
        readable: list[Sample] = []
        for sample, read in zip(samples, in_order(workers, _read, samples), strict=True):
            done += 1
            if isinstance(read, Skipped):
                skipped.append(read)
            else:
                if pixels is not None:
                    pixels[len(readable)] = read.pixels
                readable.append(sample)
                contents[split].setdefault(read.sha256, sample.path)
                digest.update(f"{sample.path.relative_to(root).as_posix()}\0{read.sha256}\n".encode())
                if split == "train":
                    sums.add(read.pixels, read.products, read.totals)
            if progress is not None:
                progress(done, total)
        _require_every_class(folders, split, readable)
        sets[split] = ImageSet(readable, None if pixels is None else pixels[: len(readable)], workers)
    both = contents["train"].keys() & contents["val"].keys()
    duplicates = sorted((contents["train"][key], contents["val"][key]) for key in both)
    return Dataset(
        root,
        folders.classes,
        sets["train"],
        sets["val"],
        sums.statistics(),
        digest.hexdigest(),
        tuple(skipped),
        tuple(Duplicate(train, val) for train, val in duplicates),
    )


def _require_every_class(folders: ClassFolders, split: Split, readable: Sequence[Sample]) -> None:
    present = {sample.label for sample in readable}
    for label, name in enumerate(folders.classes):
        if label not in present:
            raise DatasetError(
                f"none of the images in {folders.root / split / name} can be read: each is broken or no image"
            )


@dataclass(frozen=True, slots=True)
class _Read:
    pixels: NDArray[np.uint8]
    sha256: str
    products: NDArray[np.int64]  # [3, 3]: sums of products of the channels
    totals: NDArray[np.int64]  # [3]: sums of the channels


def _read(sample: Sample) -> _Read | Skipped:
    try:
        content = sample.path.read_bytes()
        pixels = prepare(content)
    except (ImageError, OSError) as error:
        return Skipped(sample.path, str(error))
    return _Read(pixels, hashlib.sha256(content).hexdigest(), *channel_sums(pixels))


def in_order(workers: ThreadPoolExecutor, read: Callable[[T], R], samples: Sequence[T]) -> Iterator[R]:
    """Yield `read` of each sample in order, with few in flight: all of the results at once might not fit in memory."""
    rest = iter(samples)
    waiting = [workers.submit(read, sample) for sample in islice(rest, 32)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [workers.submit(read, sample) for sample in islice(rest, 1)]
        yield result
