"""A data set that was read and checked: labels, prepared pixels and statistics of both splits.

Guarantees: every image is prepared by a `Decoder`, as in serving. Prepared pixels stay in memory if all
of them fit the memory budget; otherwise worker threads decode them again when they are needed.
Out of scope: augmentation (augment.py), and a cache on disk (prepare.py writes shards).
References: the paper, sections 2 (preparation) and 4.1 (components).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError, ImageError
from model_store.image import SIZE
from model_store.image_files import Skipped
from model_store.training.data.image_file import ImageFile, Source
from model_store.training.statistics import Statistics

Split = Literal["train", "val"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val")
IMAGE_BYTES: Final = SIZE * SIZE * 3
_CHUNK: Final = 256  # images decoded at a time when a whole split is loaded
Progress = Callable[[int, int], None]  # (images done, total images)


class ImageSet:
    """The readable images of a split: labels, and prepared pixels from memory or decoded on demand."""

    def __init__(
        self,
        images: Sequence[ImageFile],
        classes: Sequence[str],
        workers: ThreadPoolExecutor,
        decoder: Decoder,
        *,
        pixels: NDArray[np.uint8] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """pixels: prepared pixels, uint8 [n, 256, 256, 3]. rows: the row of each image in `pixels`, int64 [images]."""
        index_of = {label: index for index, label in enumerate(classes)}
        self.images = tuple(images)
        self.labels = np.array([index_of[image.label] for image in images], dtype=np.int64)
        self._workers = workers
        self._decoder = decoder
        self._pixels = pixels
        self._rows = np.arange(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether the prepared pixels are kept in memory."""
        return self._pixels is not None

    def load_into_memory(self) -> None:
        """Decode all images now and keep their pixels. Raises DatasetError if one cannot be read."""
        pixels = np.empty((len(self), SIZE, SIZE, 3), np.uint8)
        for first in range(0, len(self), _CHUNK):
            positions = np.arange(first, min(first + _CHUNK, len(self)))
            pixels[positions] = self.pixels(positions)
        self._pixels, self._rows = pixels, np.arange(len(self))

    def pixels(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return prepared pixels, uint8 [len(positions), 256, 256, 3]. Raises DatasetError if one cannot be read."""
        if self._pixels is not None:
            return self._pixels[self._rows[positions]]
        prepared = np.empty((len(positions), SIZE, SIZE, 3), np.uint8)
        try:
            for row, pixels in enumerate(
                self._workers.map(lambda at: self._decoder.prepare(self.images[at].read()), positions)
            ):
                prepared[row] = pixels
        except (OSError, ImageError) as error:
            raise DatasetError(
                f"An image was changed or removed during training. {str(error).rstrip('.')}. "
                "Restore it and use --resume."
            ) from error
        return prepared


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both splits, read and checked."""

    root: Path
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    statistics: Statistics
    hash: str  # SHA-256 over the preparation version, and split, class and content of each image in order
    skipped: tuple[Skipped, ...]
    duplicates: tuple[tuple[str, str], ...]  # (training image, validation image) with the same bytes
    conflicts: tuple[tuple[str, str], ...] = ()  # images of two classes with the same bytes
    notes: tuple[str, ...] = ()  # for the user
    divided: Source | None = None  # the images of each split, if they were chosen when the data set was opened

    def class_counts(self) -> NDArray[np.int64]:
        """Return the number of training images of each class, int64 [classes]."""
        return np.bincount(self.train.labels, minlength=len(self.classes))
