"""The names of an imported net's classes: from a file, from ImageNet's list, or numbers.

Promises: exactly one name for each class, none empty; a file of another count is refused with both counts.
Does not: check that the names are the right ones, which only the file's owner can.
Source: Caffe's synset_words.txt (a WordNet number before each name) and any text of one name a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from model_store.errors import ImportFormatError

IMAGENET_CLASSES: Final = 1000
PACKAGE: Final = "imagenet_classes"  # of the extra `import`
_SYNSET: Final = re.compile(r"n\d{8}\s+(?=\S)")
_MAX_BYTES: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes' names in order, and where they come from, in words."""

    names: tuple[str, ...]
    origin: str


def labels_for(classes: int, file: Path | None = None) -> Labels:
    """Return the names of `classes` classes: those of `file`; else ImageNet's for 1,000 classes, if its package is
    installed; else numbers.

    Raises ImportFormatError for a file that cannot be read, or of another count.
    """
    if file is not None:
        names = _read(file)
        if len(names) != classes:
            raise ImportFormatError(
                file, f"it has {len(names):,} labels, and the net has {classes:,} classes: one label a line is expected"
            )
        return Labels(names, f"the labels of {file.name}")
    if classes == IMAGENET_CLASSES and (imagenet := _imagenet()):
        return Labels(imagenet, "ImageNet's 1,000 class names, as the net has 1,000 classes (else give --labels FILE)")
    install = "; for ImageNet's names: pip install 'fc7[import]'" if classes == IMAGENET_CLASSES else ""
    numbers = tuple(f"class {index}" for index in range(classes))
    return Labels(numbers, f"numbers, as no names are known (give --labels FILE, one name a line{install})")


def _read(file: Path) -> tuple[str, ...]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ImportFormatError(file, "it is no list of labels: it is too large")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise ImportFormatError(file, exc.strerror or str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise ImportFormatError(file, f"it is no UTF-8 text (byte {exc.start}): labels are one name a line") from exc
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if empty := [number for number, line in enumerate(lines, start=1) if not line]:
        raise ImportFormatError(file, f"line {empty[0]} is empty: labels are one name a line")
    if all(_SYNSET.match(line) for line in lines):
        lines = [_SYNSET.sub("", line, count=1) for line in lines]
    return tuple(lines)


def _imagenet() -> tuple[str, ...] | None:
    """Return ImageNet's names in the order of all public nets (sorted WordNet numbers), or None without the package."""
    try:
        package = import_module(PACKAGE)
    except ImportError:
        return None
    names = tuple(package.get_1k_class_name(index) for index in range(IMAGENET_CLASSES))
    # Another release might hold something else: then numbers are better than wrong names.
    ends = (names[0], names[-1])
    return names if all(isinstance(name, str) and name for name in names) and _are_imagenet(*ends) else None


def _are_imagenet(first: str, last: str) -> bool:
    return first.startswith("tench") and last.startswith("toilet")
