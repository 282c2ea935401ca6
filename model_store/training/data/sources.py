"""The images of a data set before they are read, with their classes.

Guarantees: the order of classes and images depends only on names. Resuming an interrupted preparation relies on it.
Out of scope: decoding images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.training.data.image_file import ImageFile, Skipped


@dataclass(frozen=True, slots=True)
class Source:
    """The images of each split: train, val, and test if the data set has a labelled one."""

    root: Path
    kind: str  # shown to users, such as "class folders"
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[ImageFile, ...]]
    ignored: tuple[Skipped, ...] = ()  # files in class folders without the suffix of an image
    notes: tuple[str, ...] = ()  # for the user, such as classes with fewer images than announced

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
