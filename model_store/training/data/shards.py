"""Prepared shards: 256x256 images in WebDataset tars, and a data set that reads them directly.

    shards.json                   classes, encoding, data hash, and the image count, size and SHA-256 of every shard
    statistics.safetensors        mean image and RGB components of the training images, before they were encoded
    train-000000.tar              00000000.jpg and 00000000.cls (the index of its class), 00000001.jpg, ...
    train-000000.index            offset, size and class of each image in the tar, and the SHA-256 of its original
    skipped.json                  files that could not be read, each with the reason

Guarantees: a shard that is missing or has the wrong size is rejected before the first step, and `verify_shards`
compares every byte. Images are read by offset, so each epoch uses a new random order of all images, as with class
folders.
References: the paper, section 2; the WebDataset format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from model_store.decoder.decoder import Decoder
from model_store.durable import sha256_of
from model_store.errors import CheckpointError, DatasetError
from model_store.image import PREPARATION
from model_store.training.data.dataset import IMAGE_BYTES, Dataset, ImageSet
from model_store.training.data.image_file import ImageFile, read_skipped
from model_store.training.runs.run import read_statistics

FORMAT: Final = 1
SHARDS_FILE: Final = "shards.json"
INDEX_SUFFIX: Final = ".index"
_FIX: Final = "Copy it again, or create the shards again with: fc7 data prepare"


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar with images of one split, as described in shards.json."""

    file: str
    images: int
    size: int  # bytes
    sha256: str
    index_sha256: str


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """The contents of shards.json."""

    root: Path
    classes: tuple[str, ...]
    encoding: str
    source: str
    splits: Mapping[str, tuple[Shard, ...]]
    duplicates: tuple[tuple[str, str], ...]  # (training image, validation image) with the same bytes
    hash: str


def is_sharded(root: Path) -> bool:
    """Return whether `root` contains prepared shards."""
    return (root / SHARDS_FILE).is_file()


def read_folder(root: Path) -> ShardFolder:
    """Read shards.json and check the size of every shard. Raises DatasetError."""
    file = root / SHARDS_FILE
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise DatasetError(f"{file} was written by another version of fc7. This version reads format {FORMAT}.")
        if values["preparation"] != PREPARATION:
            raise DatasetError(
                f"The images in {root} were prepared by another version of fc7, and would differ from those that are "
                "served. Prepare them again into another folder: fc7 data prepare"
            )
        splits = {split: tuple(Shard(**shard) for shard in shards) for split, shards in values["splits"].items()}
        classes, duplicates = tuple(values["classes"]), tuple((train, val) for train, val in values["duplicates"])
        folder = ShardFolder(root, classes, values["encoding"], values["source"], splits, duplicates, values["hash"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} is not a valid description of shards ({error!r}). {_FIX}") from error
    for shard in (shard for shards in folder.splits.values() for shard in shards):
        path = root / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size:
            state = "is missing" if size is None else f"has {size:,} bytes instead of {shard.size:,}"
            raise DatasetError(f"{path} {state}. {_FIX}")
    return folder


def read_images(folder: ShardFolder, split: str) -> list[ImageFile]:
    """Return the images of a split in the order of the shards. Raises DatasetError."""
    if split not in folder.splits:
        raise DatasetError(f"{folder.root} has no split {split!r}. Available splits: {', '.join(folder.splits)}.")
    images = []
    for shard in folder.splits[split]:
        path = folder.root / shard.file
        index = read_index(path)
        rows = zip(*(index[key].tolist() for key in ("labels", "offsets", "sizes")), strict=True)
        images += [
            ImageFile(f"{shard.file}:{number}", folder.classes[label], path, offset, size)
            for number, (label, offset, size) in enumerate(rows)
        ]
    return images


def read_index(shard: Path) -> dict[str, NDArray[Any]]:
    """Return a shard's "offsets", "sizes" and "labels", int64 [n], and "originals" (SHA-256), uint8 [n, 32].

    Raises DatasetError.
    """
    path = shard.with_suffix(INDEX_SUFFIX)
    try:
        arrays = load_file(path)
        return {key: arrays[key] for key in ("offsets", "sizes", "labels", "originals")}
    except (OSError, SafetensorError, KeyError) as error:
        raise DatasetError(f"{path} is not a valid index of a shard ({error!r}). {_FIX}") from error


def open_shards(
    root: Path, *, memory_budget: int, workers: ThreadPoolExecutor, decoder: Decoder | None = None
) -> Dataset:
    """Open a folder of shards. Pixels stay in memory if all fit into `memory_budget` bytes. Raises DatasetError."""
    folder = read_folder(root)
    try:
        statistics = read_statistics(root)
        skipped = read_skipped(root)
    except (CheckpointError, OSError, ValueError) as error:
        raise DatasetError(f"{root} is incomplete ({error}). {_FIX}") from error
    decoder = decoder or Decoder()
    train, val = (ImageSet(read_images(folder, split), folder.classes, workers, decoder) for split in ("train", "val"))
    if (len(train) + len(val)) * IMAGE_BYTES <= memory_budget:
        train.load_into_memory()
        val.load_into_memory()
    return Dataset(root, folder.classes, train, val, statistics, folder.hash, skipped, folder.duplicates)


def verify_shards(root: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> ShardFolder:
    """Compare every byte of every shard and index with shards.json. Raises DatasetError for the first difference.

    progress: called with the number of verified shards and the total.
    """
    folder = read_folder(root)
    shards = [shard for split in folder.splits.values() for shard in split]
    for done, shard in enumerate(shards, start=1):
        path = root / shard.file
        for file, expected in ((path, shard.sha256), (path.with_suffix(INDEX_SUFFIX), shard.index_sha256)):
            found = sha256_of(file) if file.is_file() else "nothing"
            if found != expected:
                raise DatasetError(f"{file} has SHA-256 {found[:12]} instead of {expected[:12]}. {_FIX}")
        progress(done, len(shards))
    return folder
