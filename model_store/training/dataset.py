"""Class folders `<root>/{train,val}/<class>/*`: finding them, reading them once, handing out prepared pixels.

Promises: every image goes through `model_store.image.prepare`, as in serving; each file is read and hashed once; a file
that cannot be read is listed with its reason, counted and left out; prepared pixels stay in memory while they fit a
budget, else worker threads decode them again when they are needed; the mean image and the RGB components are exact
(sums of whole numbers) and do not depend on the order of reading.
Does not: augment (augment.py does), or cache on disk.
Source: the paper, section 2 (preparation) and 4.1 (components).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.errors import DatasetError, ImageError
from model_store.image import PREPARATION, SIZE, SUFFIXES, find_images, prepare
from model_store.training.runs import Statistics

Split = Literal["train", "val"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val")
IMAGE_BYTES: Final = SIZE * SIZE * 3
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True, slots=True)
class Sample:
    """One file of a class folder. `label` is an index into the folder's classes."""

    path: Path
    label: int

    def read(self) -> bytes:
        """Return the file's bytes. Raises OSError."""
        return self.path.read_bytes()


def read_part(path: Path, offset: int, size: int | None) -> bytes:
    """Return `size` bytes of a file from `offset` on; None: all that follow. Raises OSError."""
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(-1 if size is None else size)


class Readable(Protocol):
    """One image of a split: where it lies, its class, and its bytes."""

    @property
    def path(self) -> Path:
        """The file that it is, or lies in."""

    @property
    def label(self) -> int:
        """The index of its class."""

    def read(self) -> bytes:
        """Return the image file's bytes. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """What was found under `root`, before any file was opened. Classes are in alphabetical order."""

    root: Path
    classes: tuple[str, ...]
    samples: Mapping[Split, tuple[Sample, ...]]
    ignored: tuple[Skipped, ...]  # files in class folders that no image has the suffix of


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The same bytes in both splits: the validation error would be too good."""

    train: Path
    val: Path


class ImageSet:
    """The readable images of one split, by position: labels, and prepared pixels from memory or decoded again."""

    def __init__(
        self, samples: Sequence[Readable], pixels: NDArray[np.uint8] | None, workers: ThreadPoolExecutor
    ) -> None:
        self.samples = tuple(samples)
        self.labels = np.array([sample.label for sample in samples], dtype=np.int64)
        self._pixels = pixels
        self._workers = workers

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def in_memory(self) -> bool:
        """Whether the prepared pixels are kept."""
        return self._pixels is not None

    def pixels(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return prepared pixels, uint8 [len(positions), 256, 256, 3]. Raises DatasetError when a file is gone."""
        if self._pixels is not None:
            return self._pixels[positions]
        try:
            return np.stack(list(self._workers.map(lambda at: prepare(self.samples[at].read()), positions)))
        except (OSError, ImageError) as error:
            raise DatasetError(f"an image changed while it was in use: {error}. Start again with --resume") from error


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both splits, read and checked."""

    root: Path
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    statistics: Statistics
    hash: str  # sha256 over the preparation, and every readable image's split, class, path and contents
    skipped: tuple[Skipped, ...]
    duplicates: tuple[Duplicate, ...]

    def class_counts(self) -> NDArray[np.int64]:
        """Return the number of training images of each class, int64 [classes]."""
        return np.bincount(self.train.labels, minlength=len(self.classes))


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


def channel_sums(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sums of products of the channels, int64 [3, 3], and of the channels, int64 [3], over all pixels."""
    channels = pixels.reshape(-1, 3).astype(np.float64)  # whole numbers, so these sums are exact
    return (channels.T @ channels).astype(np.int64), channels.sum(0).astype(np.int64)


def in_order(workers: ThreadPoolExecutor, read: Callable[[T], R], samples: Sequence[T]) -> Iterator[R]:
    """Yield `read` of each sample in order, with few in flight: all of the results at once might not fit in memory."""
    rest = iter(samples)
    waiting = [workers.submit(read, sample) for sample in islice(rest, 32)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [workers.submit(read, sample) for sample in islice(rest, 1)]
        yield result


@dataclass(slots=True)
class Sums:
    """Exact running sums for the mean image and the covariance of RGB. `products` and `totals`: of `channel_sums`."""

    images: int = 0
    image: NDArray[np.int64] = field(default_factory=lambda: np.zeros((SIZE, SIZE, 3), np.int64))
    products: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 3), np.int64))
    totals: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))

    def add(self, pixels: NDArray[np.uint8], products: NDArray[np.int64], totals: NDArray[np.int64]) -> None:
        """Add an image, uint8 [256, 256, 3], with its `channel_sums`."""
        self.images += 1
        self.image += pixels
        self.products += products
        self.totals += totals

    def statistics(self) -> Statistics:
        """Return the mean image and the components of all images added."""
        pixels = self.images * SIZE * SIZE
        mean = self.totals / pixels
        covariance = self.products / pixels - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        order = np.argsort(-values, kind="stable")
        return Statistics(
            (self.image / self.images).astype(np.float32),
            np.maximum(values[order], 0).astype(np.float32),  # rounding may leave a grey set's zeros below zero
            vectors[:, order].astype(np.float32),
        )
