"""Data sets in class folders: `<root>/train/<class>/*` and `<root>/val/<class>/*`.

Guarantees: each file is read and hashed once. Every file that is not used is listed with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.image import PREPARATION, SIZE
from model_store.image_files import SkipKind, Skipped, escape_name, find_images, is_hidden
from model_store.prefetch import prefetch
from model_store.training.data.dataset import IMAGE_BYTES, SPLITS, Dataset, ImageSet, Progress, Split
from model_store.training.data.image_file import ImageFile, Source, load_image
from model_store.training.statistics import Sums

PREFETCH: Final = 32  # images decoded ahead of the one that is processed


def class_folders(folder: Path, skip: Callable[[Skipped], None] = lambda _: None) -> list[Path]:
    """Return the class folders directly in `folder`, in alphabetical order, and call `skip` for everything else.

    Hidden and system folders such as `__MACOSX` are no classes. A link to a folder is one.
    """
    found = []
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name):
            skip(Skipped(escape_name(str(entry)), "Hidden and system files are ignored.", SkipKind.HIDDEN))
        elif entry.is_dir():
            found.append(entry)
        else:
            skip(Skipped(escape_name(str(entry)), "It is not in a class folder.", SkipKind.NOT_AN_IMAGE))
    return found


def image_files(root: Path, folder: Path, skip: Callable[[Skipped], None] = lambda _: None) -> list[ImageFile]:
    """Return the images of a class folder. Names and labels are escaped by `escape_name`."""
    label = escape_name(folder.name)
    return [
        ImageFile(escape_name(path.relative_to(root).as_posix()), label, path) for path in find_images(folder, skip)
    ]


def find_class_folders(root: Path) -> Source:
    """List the classes and images of `root`. A class is named after its folder and must exist in both splits.

    Raises DatasetError if a folder is missing or has no classes, or if a class has no images in one of the splits.
    """
    folders: dict[Split, list[Path]] = {}
    ignored: list[Skipped] = []
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is not a folder. Images are expected as {root}/train/<class>/* and {root}/val/<class>/*. "
                "To create an example, run: fc7 data demo DIR"
            )
        folders[split] = class_folders(folder, ignored.append)
        if not folders[split]:
            raise DatasetError(f"{folder} has no class folders. One folder per class is expected: {folder}/<class>/*")
    classes = tuple(escape_name(folder.name) for folder in folders["train"])
    if different := set(classes) ^ {escape_name(folder.name) for folder in folders["val"]}:
        raise DatasetError(
            f"train and val in {root} must have the same classes. Only one of them has: {', '.join(sorted(different))}."
        )
    splits: dict[str, tuple[ImageFile, ...]] = {}
    for split in SPLITS:
        images: list[ImageFile] = []
        for folder in folders[split]:
            found = image_files(root, folder, ignored.append)
            if not found:
                raise DatasetError(
                    f"Class {escape_name(folder.name)!r} has no images in {folder}. Add images or remove the class."
                )
            images += found
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
        duplicates=tuple(
            sorted((escape_name(str(train[key])), escape_name(str(val[key]))) for key in train.keys() & val.keys())
        ),
    )


def _require_every_class(source: Source, split: Split, readable: Sequence[ImageFile]) -> None:
    present = {image.label for image in readable}
    for label in source.classes:
        if label not in present:
            raise DatasetError(
                f"None of the images in {source.root / split / label} can be read: they are broken or not images."
            )
