"""Where images to prepare come from: class folders, or ILSVRC as it is distributed; every image is a part of a file.

Promises: the order of classes and images follows from names alone, so that an interrupted preparation goes on with the
same plan; nothing is unpacked: an image in a tar (or in a tar of a tar) is read where it lies.
Does not: decode images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.training.data.class_folders import find_class_folders
from model_store.training.data.dataset import Skipped, read_part


@dataclass(frozen=True, slots=True)
class Item:
    """One image: `size` bytes of `file` from `offset` on (None: the whole file). `label` is an index of the classes."""

    name: str  # as it is told to users
    label: int
    file: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Return the image's bytes. Raises OSError."""
        return read_part(self.file, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class Source:
    """Images by split: train and val, and test where there is one with labels."""

    root: Path
    kind: str  # in words
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Item, ...]]
    ignored: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()  # what a user should know, such as classes with fewer images than announced

    def digest(self) -> str:
        """Return a hash of classes, names, labels and sizes: what the plan of a preparation follows from."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split, items in self.splits.items():
            for item in items:
                size = item.file.stat().st_size if item.size is None else item.size
                digest.update(f"{split}\0{item.name}\0{item.label}\0{size}\n".encode())
        return digest.hexdigest()


def class_folder_source(root: Path) -> Source:
    """Return the images of `root`/{train,val}/<class>/*. Raises DatasetError."""
    found = find_class_folders(root)
    splits: dict[str, tuple[Item, ...]] = {
        split: tuple(Item(sample.path.relative_to(root).as_posix(), sample.label, sample.path) for sample in samples)
        for split, samples in found.samples.items()
    }
    return Source(root, "class folders", found.classes, splits, found.ignored)
