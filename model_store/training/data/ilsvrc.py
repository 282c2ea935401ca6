"""ILSVRC-2010 and ILSVRC-2012 as distributed: the tars, or the folders that they unpack to, and the development kit.

    ILSVRC2012_devkit_t12.tar.gz      or the folder: data/meta.mat, data/ILSVRC2012_validation_ground_truth.txt
    ILSVRC2012_img_train.tar          contains a tar for each class (n01440764.tar); or a folder of those tars, or of
                                      folders n01440764/*.JPEG; any name with "train" in it
    ILSVRC2012_img_val.tar            ILSVRC2012_val_00000001.JPEG...; or a folder of them; any name with "val" in it
    (test, with ILSVRC2010_test_ground_truth.txt: the same; table 1 of the paper uses the test images of 2010)

Guarantees: classes are in the alphabetical order of their WordNet ids, as in Caffe and torchvision. A class is named by
its words, followed by its WordNet id if two classes have the same words ("crane"). Line n of a ground truth is the
ILSVRC id of image n, which the kit maps to a WordNet id; the numbers of lines and images must be equal.
Out of scope: unpacking files, and bounding boxes.
References: readme.txt of both development kits.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_store.errors import DatasetError, MissingExtraError
from model_store.training.data.image_file import ImageFile, Source

_META: Final = "data/meta.mat"
_WORDNET_ID: Final = re.compile(r"n\d{8}")
_NUMBER: Final = re.compile(r"_(\d{8})\.JPEG$", re.IGNORECASE)
_NOT_IMAGES: Final = frozenset({"bbox", "sbow"})  # in the names of other files of the distribution
_Member = tuple[str, Path, int, int | None]  # (name, file, offset, size) of an image; size as in `ImageFile`
_TRUTHS: Final = {"val": "validation_ground_truth.txt", "test": "test_ground_truth.txt"}


@dataclass(frozen=True, slots=True)
class Synset:
    """A class of the challenge. `number` is its ILSVRC id (from 1); `images` is the announced number for training."""

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


def is_ilsvrc(root: Path) -> bool:
    """Return whether `root` contains a development kit."""
    return _find_kit(root) is not None


def ilsvrc_source(root: Path) -> Source:
    """Return the images of ILSVRC in `root`. Raises DatasetError, MissingExtraError (SciPy reads meta.mat)."""
    kit = read_kit(root)
    words = Counter(synset.words for synset in kit.synsets)
    labels = {s.wordnet_id: s.words if words[s.words] == 1 else f"{s.words} ({s.wordnet_id})" for s in kit.synsets}
    labels_by_number = {synset.number: labels[synset.wordnet_id] for synset in kit.synsets}
    train = tuple(_training_images(_find_images(root, "train", kit), labels))
    counts = Counter(image.label for image in train)
    missing = [wordnet_id for wordnet_id, label in labels.items() if not counts[label]]
    if missing:
        raise DatasetError(f"{root} has no training images of {len(missing)} classes: {', '.join(missing[:5])}.")
    notes = [
        f"{synset.wordnet_id} has {found:,} training images, but the development kit announces {synset.images:,}."
        for synset in kit.synsets
        if (found := counts[labels[synset.wordnet_id]]) != synset.images
    ]
    splits = {"train": train}
    for split, suffix in _TRUTHS.items():
        truth = next((name for name in kit.truths if name.endswith(suffix)), None)
        if truth is None and split == "test":
            continue  # the ground truth of the 2012 test images is not public
        if truth is None:
            raise DatasetError(f"The development kit {kit.path} is incomplete: it has no {suffix}.")
        splits[split] = tuple(_numbered_images(_find_images(root, split, kit), kit, truth, labels_by_number))
    return Source(root, f"ILSVRC-{kit.year}", tuple(labels.values()), splits, notes=tuple(notes))


def read_kit(root: Path) -> DevKit:
    """Read the development kit in `root`, packed or unpacked. Raises DatasetError, MissingExtraError."""
    found = _find_kit(root)
    if found is None:
        raise DatasetError(
            f"{root} has no development kit: neither a tar with devkit in its name, nor a folder with {_META}."
        )
    files = _kit_files(found)
    for path in root.glob("*ground_truth.txt"):  # that of the 2010 test images is distributed as a separate file
        files.setdefault(path.name, path.read_bytes())
    meta = files.pop("meta.mat", None)
    if meta is None:
        raise DatasetError(f"{found} has no {_META}, so it is not a development kit of ILSVRC-2010 or ILSVRC-2012.")
    year, synsets = _synsets(found, meta)
    return DevKit(found, year, synsets, {name: _numbers(found, name, text) for name, text in files.items()})


def _find_kit(root: Path) -> Path | None:
    for meta in (*sorted(root.glob(f"*/{_META}")), *sorted(root.glob(_META))):
        return meta.parent.parent
    return next((path for path in sorted(root.glob("*devkit*")) if path.is_file()), None)


def _kit_files(kit: Path) -> dict[str, bytes]:
    """Return the contents of meta.mat and of the ground truths by name."""

    def needed(name: str) -> bool:
        return name == "meta.mat" or name.endswith("ground_truth.txt")

    if kit.is_dir():
        return {path.name: path.read_bytes() for path in sorted(kit.glob("data/*")) if needed(path.name)}
    files = {}
    try:
        with tarfile.open(kit) as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and needed(name) and (stream := tar.extractfile(member)):
                    files[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{kit} cannot be read as a tar: {error}.") from error
    return files


def _synsets(kit: Path, meta: bytes) -> tuple[int, tuple[Synset, ...]]:
    try:
        from scipy.io import loadmat  # noqa: PLC0415 - only this format needs it
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "train") from error
    try:
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        key = next(name for name in table.dtype.names if re.fullmatch(r"ILSVRC\d{4}_ID", name))
        # The table also lists the synsets above the classes in WordNet.
        rows: list[Any] = [row for row in table.ravel() if int(row["num_children"]) == 0]
        synsets = [
            Synset(int(row[key]), str(row["WNID"]), str(row["words"]), int(row["num_train_images"])) for row in rows
        ]
    except Exception as error:  # SciPy's reader raises MatReadError, ValueError, zlib.error and others
        raise DatasetError(f"meta.mat of {kit} is not a table of synsets that fc7 can read: {error!r}.") from error
    if len({synset.number for synset in synsets}) != len(synsets):
        raise DatasetError(f"meta.mat of {kit} gives two classes the same number.")
    return int(key[6:10]), tuple(sorted(synsets, key=lambda synset: synset.wordnet_id))


def _numbers(kit: Path, name: str, text: bytes) -> list[int]:
    try:
        return [int(line) for line in text.split()]
    except ValueError as error:
        raise DatasetError(f"{name} of {kit} must have one number per line: {error}.") from error


def _find_images(root: Path, split: str, kit: DevKit) -> Path:
    """Return the tar or folder with the images of a split."""
    for path in sorted(root.iterdir(), key=lambda path: (not path.is_dir(), path.name)):
        readable = path.is_dir() or path.suffix == ".tar"
        words = set(re.split(r"[^a-z]+", path.name.lower()))
        if readable and path != kit.path and split in words and not words & _NOT_IMAGES:
            return path
    raise DatasetError(
        f"{root} has no {split} images. A tar or folder with {split!r} in its name is expected, such as "
        f"ILSVRC{kit.year}_img_{split}.tar."
    )


def _training_images(images: Path, labels: dict[str, str]) -> Iterator[ImageFile]:
    """Yield the training images in the order of WordNet ids and names. labels: by WordNet id."""
    for entry_name, file, start, length in _members(images):
        wordnet_id = entry_name.removesuffix(".tar")
        if not _WORDNET_ID.fullmatch(wordnet_id):
            continue
        for name, image_file, offset, size in _members(file, start, length):
            if wordnet_id not in labels:
                raise DatasetError(f"{images} has a class {wordnet_id} that is not in the development kit.")
            yield ImageFile(f"{wordnet_id}/{name}", labels[wordnet_id], image_file, offset, size)


def _members(file: Path, start: int = 0, size: int | None = None) -> list[_Member]:
    """Return the files in a folder, or in the tar of `size` bytes that starts at `start` of `file`, sorted by name."""
    if file.is_dir():
        return [(path.name, path, 0, None) for path in sorted(file.iterdir())]
    found: list[_Member] = []
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if size is not None and member.offset >= start + size:
                        break  # an inner tar without an end marker: this member belongs to the outer tar
                    if member.isfile():
                        found.append((Path(member.name).name, file, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{file} cannot be read as a tar: {error}.") from error
    return sorted(found)


def _numbered_images(images: Path, kit: DevKit, truth: str, labels: dict[int, str]) -> Iterator[ImageFile]:
    """Yield the images of a split that has a ground truth, in the order of their numbers. labels: by ILSVRC id."""
    numbers = kit.truths[truth]
    if images.is_dir():
        members: list[_Member] = [(path.name, path, 0, None) for path in sorted(images.rglob("*"))]
    else:
        members = _members(images)
    numbered = [(int(match[1]), member) for member in members if (match := _NUMBER.search(member[0]))]
    if len(numbered) != len(numbers):
        raise DatasetError(
            f"{truth} of {kit.path} has {len(numbers):,} lines, but {images} has {len(numbered):,} images. Both must "
            "be complete and of the same year."
        )
    for number, (name, file, offset, size) in numbered:
        if not 1 <= number <= len(numbers) or numbers[number - 1] not in labels:
            raise DatasetError(f"{truth} of {kit.path} does not give a class of the development kit for {name}.")
        yield ImageFile(name, labels[numbers[number - 1]], file, offset, size)
