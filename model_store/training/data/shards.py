"""Prepared shards: 256x256 images in tars of the WebDataset form, and a data set read straight from them.

    shards.json                   classes, encoding, every shard's images, bytes and SHA-256; the data's hash
    statistics.safetensors        mean image and RGB components of the training images, before they were encoded
    train-000000.tar              00000000.jpg and 00000000.cls (the class's number), 00000001.jpg, ...
    train-000000.index            where the images lie in the tar, their classes, the SHA-256 of their originals
    skipped.json                  what could not be read, each with the reason

Promises: a shard that is missing or of another size is refused before the first step, and `verify_shards` compares
every byte; any image is read by its place, so that each epoch has a random order of all of them, as with class folders.
Does not: write (preparing.py does).
Source: the paper, section 2; the WebDataset format for the tars.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from model_store.durable import sha256_of
from model_store.errors import CheckpointError, DatasetError
from model_store.image import SIZE
from model_store.training.data.dataset import IMAGE_BYTES, Dataset, Duplicate, ImageSet, Skipped, read_part
from model_store.training.runs.run import read_statistics

FORMAT: Final = 1
SHARDS_FILE: Final = "shards.json"
SKIPPED_FILE: Final = "skipped.json"
INDEX_SUFFIX: Final = ".index"
_MEND: Final = "copy it again, or make the folder anew: fc7 data prepare"


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of one split, as shards.json describes it."""

    file: str
    images: int
    size: int  # bytes
    sha256: str
    index_sha256: str


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """What shards.json says."""

    root: Path
    classes: tuple[str, ...]
    encoding: str
    source: str
    splits: Mapping[str, tuple[Shard, ...]]
    duplicates: tuple[tuple[str, str], ...]  # (training, validation) image of the same bytes
    hash: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an image lies: `size` bytes of `path` from `offset` on."""

    path: Path
    offset: int
    size: int
    label: int

    def read(self) -> bytes:
        """Return the encoded image. Raises OSError."""
        return read_part(self.path, self.offset, self.size)


def is_sharded(root: Path) -> bool:
    """Tell whether `root` holds prepared shards."""
    return (root / SHARDS_FILE).is_file()


def read_folder(root: Path) -> ShardFolder:
    """Read shards.json and look at every shard's size. Raises DatasetError naming the file."""
    file = root / SHARDS_FILE
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise DatasetError(f"{file} was written by another release of fc7: this one reads format {FORMAT}")
        splits = {split: tuple(Shard(**shard) for shard in shards) for split, shards in values["splits"].items()}
        folder = ShardFolder(
            root,
            tuple(values["classes"]),
            values["encoding"],
            values["source"],
            splits,
            tuple((pair[0], pair[1]) for pair in values["duplicates"]),
            values["hash"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} does not describe shards: {error!r}") from error
    for shard in (shard for shards in folder.splits.values() for shard in shards):
        path = root / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size:
            found = "is missing" if size is None else f"has {size:,} bytes instead of {shard.size:,}"
            raise DatasetError(f"{path} {found}: {_MEND}")
    return folder


def read_entries(folder: ShardFolder, split: str) -> list[Entry]:
    """Return where the images of a split lie, in their order. Raises DatasetError."""
    if split not in folder.splits:
        raise DatasetError(f"{folder.root} has no split {split!r}; it has {', '.join(folder.splits)}")
    entries = []
    for shard in folder.splits[split]:
        arrays = read_index(folder.root / shard.file)
        path = folder.root / shard.file
        columns = (arrays[key].tolist() for key in ("offsets", "sizes", "labels"))
        entries += [Entry(path, *row) for row in zip(*columns, strict=True)]
    return entries


def read_index(shard: Path) -> dict[str, NDArray[Any]]:
    """Return a shard's offsets int64, sizes int64, labels int64, each [n], and originals uint8 [n, 32].

    Raises DatasetError.
    """
    path = shard.with_suffix(INDEX_SUFFIX)
    try:
        arrays = load_file(path)
        return {key: arrays[key] for key in ("offsets", "sizes", "labels", "originals")}
    except (OSError, SafetensorError, KeyError) as error:
        raise DatasetError(f"{path} is not the index of a shard ({error!r}): {_MEND}") from error


class ShardImages(ImageSet):
    """The images of a split in shards."""

    def __init__(self, entries: Sequence[Entry], workers: ThreadPoolExecutor, *, keep: bool) -> None:
        """Take the entries; keep: decode all of them now, and hold their pixels in memory."""
        super().__init__(entries, None, workers)
        if keep:
            pixels = np.empty((len(entries), SIZE, SIZE, 3), np.uint8)
            for first in range(0, len(entries), 256):
                some = np.arange(first, min(first + 256, len(entries)))
                pixels[some] = self.pixels(some)
            self._pixels = pixels


def open_shards(root: Path, *, memory_budget: int, workers: ThreadPoolExecutor) -> Dataset:
    """Return the data set of a folder of shards; pixels are kept in memory when all of them fit `memory_budget` bytes.

    Raises DatasetError.
    """
    folder = read_folder(root)
    entries = {split: read_entries(folder, split) for split in ("train", "val")}
    keep = sum(map(len, entries.values())) * IMAGE_BYTES <= memory_budget
    try:
        statistics = read_statistics(root)
        skipped = json.loads((root / SKIPPED_FILE).read_text(encoding="utf-8"))
    except (CheckpointError, OSError, ValueError) as error:
        raise DatasetError(f"{error}: {_MEND}") from error
    return Dataset(
        root,
        folder.classes,
        ShardImages(entries["train"], workers, keep=keep),
        ShardImages(entries["val"], workers, keep=keep),
        statistics,
        folder.hash,
        tuple(Skipped(Path(item["path"]), item["reason"]) for item in skipped),
        tuple(Duplicate(Path(train), Path(val)) for train, val in folder.duplicates),
    )


def verify_shards(root: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> ShardFolder:
    """Compare every byte of every shard and index with shards.json. Raises DatasetError naming the first that differs.

    progress: called with the shards done and in all.
    """
    folder = read_folder(root)
    shards = [shard for split in folder.splits.values() for shard in split]
    for done, shard in enumerate(shards, start=1):
        path = root / shard.file
        for file, expected in ((path, shard.sha256), (path.with_suffix(INDEX_SUFFIX), shard.index_sha256)):
            found = sha256_of(file) if file.is_file() else "nothing"
            if found != expected:
                raise DatasetError(f"{file} has SHA-256 {found[:12]} instead of {expected[:12]}: {_MEND}")
        progress(done, len(shards))
    return folder
