"""Data sets in class folders: `<root>/train/<class>/*` and `<root>/val/<class>/*`.

Guarantees: each file is read and hashed once. A file that cannot be read is skipped and listed with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.image import PREPARATION, SIZE, SUFFIXES, find_images
from model_store.prefetch import prefetch
from model_store.training.data.dataset import IMAGE_BYTES, SPLITS, Dataset, ImageSet, Progress, Split
from model_store.training.data.image_file import ImageFile, Skipped, Source, load_image
from model_store.training.statistics import Sums

PREFETCH: Final = 32  # images decoded ahead of the one that is processed


def class_folders(folder: Path) -> list[Path]:
    """Return the class folders directly in `folder`, in alphabetical order. Hidden folders are ignored."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def find_class_folders(root: Path) -> Source:
    """List the classes and images of `root`. A class is named after its folder and must exist in both splits.

    Raises DatasetError if a folder is missing or has no classes, or if a class has no images in one of the splits.
    """
    folders: dict[Split, list[Path]] = {}
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is not a folder. Images are expected as {root}/train/<class>/* and {root}/val/<class>/*. "
                "To create an example, run: fc7 data demo DIR"
            )
        folders[split] = class_folders(folder)
        if not folders[split]:
            raise DatasetError(f"{folder} has no class folders. One folder per class is expected: {folder}/<class>/*")
    classes = tuple(folder.name for folder in folders["train"])
    if different := set(classes) ^ {folder.name for folder in folders["val"]}:
        raise DatasetError(
            f"train and val in {root} must have the same classes. Only one of them has: {', '.join(sorted(different))}."
        )
    splits: dict[str, tuple[ImageFile, ...]] = {}
    ignored: list[Skipped] = []
    unsupported = f"not a supported image suffix ({' '.join(SUFFIXES)})"
    for split in SPLITS:
        images: list[ImageFile] = []
        for folder in folders[split]:
            paths = list(find_images(folder))
            if not paths:
                raise DatasetError(f"Class {folder.name!r} has no images in {folder}. Add images or remove the class.")
            images += [ImageFile(path.relative_to(root).as_posix(), folder.name, path) for path in paths]
            visible = {path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}
            ignored += [Skipped(path, unsupported) for path in sorted(visible.difference(paths))]
        splits[split] = tuple(images)
    return Source(root, "class folders", classes, splits, tuple(ignored))


def open_dataset(
    root: Path,
    *,
    memory_budget: int,
    workers: ThreadPoolExecutor,
    decoder: Decoder | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Dataset:
    """Read every image under `root` once: prepare it, hash it, and add it to the training set's statistics.

    memory_budget: bytes available for prepared pixels (196,608 per image). If not all of them fit, none are kept.
    Raises DatasetError as `find_class_folders` does, and if a class has no readable image in one of the splits.
    """
    decoder = decoder or Decoder()
    source = find_class_folders(root)
    total = sum(len(images) for images in source.splits.values())
    keep = total * IMAGE_BYTES <= memory_budget
    skipped = list(source.ignored)
    paths_by_sha256: dict[Split, dict[str, Path]] = {"train": {}, "val": {}}
    digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
    sums = Sums()
    sets: dict[Split, ImageSet] = {}
    done = 0
    for split in SPLITS:
        images = source.splits[split]
        pixels = np.empty((len(images), SIZE, SIZE, 3), np.uint8) if keep else None
        readable: list[ImageFile] = []
        with prefetch(partial(load_image, decoder=decoder, with_sums=True), images, workers, PREFETCH) as results:
            for image, future in results:
                done += 1
                loaded = future.result()
                if isinstance(loaded, Skipped):
                    skipped.append(loaded)
                else:
                    if pixels is not None:
                        pixels[len(readable)] = loaded.pixels
                    readable.append(image)
                    paths_by_sha256[split].setdefault(loaded.sha256, image.file)
                    digest.update(f"{image.name}\0{loaded.sha256}\n".encode())
                    if split == "train" and loaded.sums is not None:
                        sums.add(loaded.pixels, loaded.sums)
                progress(done, total)
        _require_every_class(source, split, readable)
        sets[split] = ImageSet(
            readable, source.classes, workers, decoder, None if pixels is None else pixels[: len(readable)]
        )
    train, val = paths_by_sha256["train"], paths_by_sha256["val"]
    return Dataset(
        root,
        source.classes,
        sets["train"],
        sets["val"],
        sums.statistics(),
        digest.hexdigest(),
        tuple(skipped),
        duplicates=tuple(sorted((str(train[key]), str(val[key])) for key in train.keys() & val.keys())),
    )


def _require_every_class(source: Source, split: Split, readable: Sequence[ImageFile]) -> None:
    present = {image.label for image in readable}
    for label in source.classes:
        if label not in present:
            raise DatasetError(
                f"None of the images in {source.root / split / label} can be read: they are broken or not images."
            )
