"""Class folders `<root>/{train,val}/<class>/*`: finding them, reading them once, handing out prepared pixels.

Promises: every image goes through `model_store.image.prepare`, as in serving; each file is read and hashed once; a file
that cannot be read is listed with its reason, counted and left out; prepared pixels stay in memory while they fit a
budget, else worker threads decode them again when they are needed; the mean image and the RGB components are exact
(sums of whole numbers) and do not depend on the order of reading.
Does not: augment (augment.py does), or cache on disk.
Source: the paper, section 2 (preparation) and 4.1 (components).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.errors import DatasetError, ImageError
from model_store.image import SIZE, prepare
from model_store.training.statistics import Statistics

Split = Literal["train", "val"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val")
IMAGE_BYTES: Final = SIZE * SIZE * 3
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # (images done, images in all)


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
