"""ILSVRC-2010 and ILSVRC-2012 as they are distributed: tars or what they unpack to, and the development kit.

    ILSVRC2012_devkit_t12.tar.gz      or the folder: data/meta.mat, data/ILSVRC2012_validation_ground_truth.txt
    ILSVRC2012_img_train.tar          a tar of a tar for each class, n01440764.tar; or a folder of those tars, or of
                                      folders n01440764/*.JPEG; any name with "train" in it
    ILSVRC2012_img_val.tar            ILSVRC2012_val_00000001.JPEG...; or a folder of them; any name with "val" in it
    (test, with ILSVRC2010_test_ground_truth.txt: the same; the paper's table 1 is on 2010's test images)

Promises: class i is the i-th WordNet id in alphabetical order, from 0, as in Caffe and torchvision; a class is called
by its words, with the WordNet id where two classes have the same ones ("crane"). Line n of a ground truth is image n's
ILSVRC id, which the kit maps to a WordNet id; another number of lines than images is refused.
Does not: unpack anything, or use the bounding boxes.
Source: the readme.txt of both development kits.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_store.errors import DatasetError, MissingExtraError
from model_store.training.data.sources import Item, Source

_META: Final = "data/meta.mat"
_WORDNET_ID: Final = re.compile(r"n\d{8}")
_NUMBER: Final = re.compile(r"_(\d{8})\.JPEG$", re.IGNORECASE)
_OTHER: Final = frozenset({"bbox", "sbow"})  # in the names of what comes beside the images
_TRUTHS: Final = {"val": "validation_ground_truth.txt", "test": "test_ground_truth.txt"}


@dataclass(frozen=True, slots=True)
class Synset:
    """A class of the challenge. `number` is its ILSVRC id, from 1; `images` is what the kit announces for training."""

    number: int
    wordnet_id: str
    words: str
    images: int


@dataclass(frozen=True, slots=True)
class DevKit:
    """A development kit: its year, the classes in the order of their WordNet ids, and ground truths by file name."""

    path: Path
    year: int
    synsets: tuple[Synset, ...]
    truths: dict[str, list[int]]

    def labels(self) -> tuple[str, ...]:
        """Return what the classes are called, in their order."""
        often = Counter(synset.words for synset in self.synsets)
        return tuple(s.words if often[s.words] == 1 else f"{s.words} ({s.wordnet_id})" for s in self.synsets)


def is_ilsvrc(root: Path) -> bool:
    """Tell whether there is a development kit in `root`."""
    return _find_kit(root) is not None


def ilsvrc_source(root: Path) -> Source:
    """Return the images of ILSVRC in `root`. Raises DatasetError, MissingExtraError (SciPy reads meta.mat)."""
    kit = read_kit(root)
    index = {synset.wordnet_id: place for place, synset in enumerate(kit.synsets)}
    by_number = {synset.number: place for place, synset in enumerate(kit.synsets)}
    train = tuple(_train_items(_place(root, "train", kit), index))
    counts = Counter(item.label for item in train)
    missing = [synset.wordnet_id for place, synset in enumerate(kit.synsets) if not counts[place]]
    if missing:
        raise DatasetError(f"{root} has no training images of {len(missing)} classes: {', '.join(missing[:5])}")
    notes = [
        f"{synset.wordnet_id} has {counts[place]:,} training images, and the kit announces {synset.images:,}"
        for place, synset in enumerate(kit.synsets)
        if counts[place] != synset.images
    ]
    splits = {"train": train}
    for split, suffix in _TRUTHS.items():
        truth = next((name for name in kit.truths if name.endswith(suffix)), None)
        if truth is None and split == "test":
            continue  # 2012's is not public
        if truth is None:
            raise DatasetError(f"{kit.path} has no {suffix}: it is no whole development kit")
        splits[split] = tuple(_numbered_items(_place(root, split, kit), kit, truth, by_number))
    return Source(root, f"ILSVRC-{kit.year}", kit.labels(), splits, notes=tuple(notes))


def read_kit(root: Path) -> DevKit:
    """Read the development kit in `root`, unpacked or not. Raises DatasetError, MissingExtraError."""
    found = _find_kit(root)
    if found is None:
        raise DatasetError(f"{root} has no development kit: neither a tar called *devkit* nor a folder with {_META}")
    files = _kit_files(found)
    for path in root.glob("*ground_truth.txt"):  # 2010's for the test images comes by itself
        files.setdefault(path.name, path.read_bytes())
    meta = files.pop("meta.mat", None)
    if meta is None:
        raise DatasetError(f"{found} has no {_META}: it is no development kit of ILSVRC-2010 or ILSVRC-2012")
    year, synsets = _synsets(found, meta)
    return DevKit(found, year, synsets, {name: _numbers(found, name, text) for name, text in files.items()})


def _find_kit(root: Path) -> Path | None:
    for meta in (*sorted(root.glob(f"*/{_META}")), *sorted(root.glob(_META))):
        return meta.parent.parent
    return next((path for path in sorted(root.glob("*devkit*")) if path.is_file()), None)


def _kit_files(kit: Path) -> dict[str, bytes]:
    """Return meta.mat and the ground truths by their names."""

    def wanted(name: str) -> bool:
        return name == "meta.mat" or name.endswith("ground_truth.txt")

    if kit.is_dir():
        return {path.name: path.read_bytes() for path in sorted(kit.glob("data/*")) if wanted(path.name)}
    files = {}
    try:
        with tarfile.open(kit) as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and wanted(name) and (stream := tar.extractfile(member)):
                    files[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{kit} cannot be read as a tar: {error}") from error
    return files


def _synsets(kit: Path, meta: bytes) -> tuple[int, tuple[Synset, ...]]:
    try:
        from scipy.io import loadmat  # noqa: PLC0415 - only this format needs it
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "train") from error
    try:
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        key = next(name for name in table.dtype.names if re.fullmatch(r"ILSVRC\d{4}_ID", name))
        # What lies above the classes in WordNet is listed after them.
        rows: list[Any] = [row for row in table.ravel() if int(row["num_children"]) == 0]
        synsets = [
            Synset(int(row[key]), str(row["WNID"]), str(row["words"]), int(row["num_train_images"])) for row in rows
        ]
    except Exception as error:  # the seam: SciPy's reader raises MatReadError, ValueError, zlib.error and others
        raise DatasetError(f"{kit}: meta.mat is not the table of synsets that fc7 reads: {error!r}") from error
    if len({synset.number for synset in synsets}) != len(synsets):
        raise DatasetError(f"{kit}: meta.mat gives two classes the same number")
    return int(key[6:10]), tuple(sorted(synsets, key=lambda synset: synset.wordnet_id))


def _numbers(kit: Path, name: str, text: bytes) -> list[int]:
    try:
        return [int(line) for line in text.split()]
    except ValueError as error:
        raise DatasetError(f"{name} of {kit} is not a number a line: {error}") from error


def _place(root: Path, split: str, kit: DevKit) -> Path:
    """Return the tar or folder of a split's images."""
    for path in sorted(root.iterdir(), key=lambda path: (not path.is_dir(), path.name)):
        known = path.is_dir() or path.suffix == ".tar"
        words = set(re.split(r"[^a-z]+", path.name.lower()))
        if known and path != kit.path and split in words and not words & _OTHER:
            return path
    raise DatasetError(
        f"{root} has no images of {split}: a tar or folder with {split!r} in its name is expected, such as "
        f"ILSVRC{kit.year}_img_{split}.tar"
    )


def _train_items(place: Path, index: dict[str, int]) -> Iterator[Item]:
    for wordnet_id, name, file, offset, size in _class_members(place):
        if wordnet_id not in index:
            raise DatasetError(f"{place} has a class {wordnet_id} that the development kit does not know")
        yield Item(f"{wordnet_id}/{name}", index[wordnet_id], file, offset, size)


def _class_members(place: Path) -> Iterator[tuple[str, str, Path, int, int | None]]:
    """Yield (WordNet id, file name, file, offset, size) in the order of ids and names."""
    if not place.is_dir():
        for outer, begin, size in _members(place):
            if _WORDNET_ID.fullmatch(Path(outer).stem):
                yield from (
                    (Path(outer).stem, name, place, offset, length)
                    for name, offset, length in _members(place, begin, size)
                )
        return
    for entry in sorted(place.iterdir()):
        if not _WORDNET_ID.fullmatch(entry.name.removesuffix(".tar")):
            continue
        if entry.is_dir():
            for path in sorted(entry.iterdir()):
                yield entry.name, path.name, path, 0, None
        else:
            for name, offset, size in _members(entry):
                yield entry.stem, name, entry, offset, size


def _members(file: Path, begin: int = 0, size: int | None = None) -> Sequence[tuple[str, int, int]]:
    """Return (name, offset in the file, size) of the files in the tar that begins at `begin`, by name."""
    found = []
    try:
        with file.open("rb") as stream:
            stream.seek(begin)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if size is not None and member.offset >= begin + size:
                        break  # a tar within a tar that was not closed: what follows is the outer one's
                    if member.isfile():
                        found.append((Path(member.name).name, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{file} cannot be read as a tar: {error}") from error
    return sorted(found)


def _numbered_items(place: Path, kit: DevKit, truth: str, by_number: dict[int, int]) -> Iterator[Item]:
    """Yield the images of a split whose classes are in a ground truth, in the order of their numbers."""
    numbers = kit.truths[truth]
    if place.is_dir():
        files = [(path.name, path, 0, None) for path in sorted(place.rglob("*")) if _NUMBER.search(path.name)]
        images: list[tuple[str, Path, int, int | None]] = list(files)
    else:
        images = [(name, place, at, size) for name, at, size in _members(place) if _NUMBER.search(name)]
    if len(images) != len(numbers):
        raise DatasetError(
            f"{truth} of {kit.path} has {len(numbers):,} lines, and {place} has {len(images):,} images: both must be "
            "whole, and of the same year"
        )
    for name, file, offset, size in images:
        found = _NUMBER.search(name)
        number = int(found[1]) if found else 0
        if not 1 <= number <= len(numbers) or numbers[number - 1] not in by_number:
            raise DatasetError(f"{truth} of {kit.path} has no class of the kit for {name}")
        yield Item(name, by_number[numbers[number - 1]], file, offset, size)
