"""The images of a data set in files, with their classes, and how an image is loaded for training and evaluation.

Guarantees: an image that cannot be read is reported with the reason, never dropped silently. The order of classes and
images depends only on names, so that an interrupted preparation can be resumed.
Out of scope: finding the files (sources.py), choosing images for validation (split.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder
from model_store.durable import write_atomic
from model_store.errors import ImageError
from model_store.image_files import SkipKind, Skipped
from model_store.training.runs.run import SKIPPED_FILE
from model_store.training.statistics import ChannelSums, channel_sums

ALL: Final = "all"
"""The split of all images of a data set that does not have splits."""
SPLIT_ORDER: Final = ("train", "val", "test", ALL)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file: the whole file, or `size` bytes starting at `offset` (an image inside a tar)."""

    name: str  # shown to users
    label: str  # the name of its class
    file: Path
    offset: int = 0  # bytes
    size: int | None = None  # bytes; None: up to the end of the file

    def read(self) -> bytes:
        """Return the encoded image. Raises OSError."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(-1 if self.size is None else self.size)


@dataclass(frozen=True, slots=True)
class Source:
    """The images of each split: train, val and test, as far as the data set has them, or `ALL` if it has no splits."""

    root: Path
    kind: str  # shown to users, such as "class folders"
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[ImageFile, ...]]
    ignored: tuple[Skipped, ...] = ()  # files and folders that are not taken for images
    notes: tuple[str, ...] = ()  # for the user, such as classes with fewer images than announced

    @property
    def is_split(self) -> bool:
        """Whether the data set says which images are for training."""
        return ALL not in self.splits

    def counts(self, split: str) -> Counter[str]:
        """Return the number of images of each class in a split."""
        return Counter(image.label for image in self.splits.get(split, ()))

    def index_of(self) -> dict[str, int]:
        """Return the index of each class by its label."""
        return {label: index for index, label in enumerate(self.classes)}

    def digest(self) -> str:
        """Return a SHA-256 over classes, image names, labels and sizes. Raises OSError."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        index_of = self.index_of()
        for split, images in self.splits.items():
            for image in images:
                size = image.file.stat().st_size if image.size is None else image.size
                digest.update(f"{split}\0{image.name}\0{index_of[image.label]}\0{size}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A prepared image. `sums` is None if it was not requested."""

    pixels: NDArray[np.uint8]  # [256, 256, 3]
    sha256: str  # of the encoded image, hexadecimal
    shorter_side: int  # of the original, in pixels
    sums: ChannelSums | None


def load_image(image: ImageFile, decoder: Decoder, *, with_sums: bool = False) -> LoadedImage | Skipped:
    """Read and prepare an image. Returns a `Skipped` if it cannot be read."""
    try:
        content = image.read()
        decoded = decoder.decode(content)
    except (ImageError, OSError) as error:
        return Skipped.of(image.file, error)
    return LoadedImage(
        decoded.pixels,
        hashlib.sha256(content).hexdigest(),
        min(decoded.width, decoded.height),
        channel_sums(decoded.pixels) if with_sums else None,
    )


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Write skipped.json into `folder`. Raises OSError."""
    entries = [item.to_dict() for item in skipped]
    write_atomic(folder / SKIPPED_FILE, json.dumps(entries, indent=2, ensure_ascii=False).encode())


def skipped_of(entry: Mapping[str, str]) -> Skipped:
    """Return an entry of skipped.json. Raises KeyError, ValueError."""
    return Skipped(entry["path"], entry["reason"], SkipKind(entry.get("kind", SkipKind.BROKEN_IMAGE)))


def read_skipped(folder: Path) -> tuple[Skipped, ...]:
    """Read skipped.json of `folder`. Raises OSError, ValueError."""
    entries = json.loads((folder / SKIPPED_FILE).read_text(encoding="utf-8"))
    return tuple(skipped_of(entry) for entry in entries)
