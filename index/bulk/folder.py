"""A folder into the index, and the whole index to another model: many images, with progress, resumable.

Promises: what was committed stays when either is interrupted, and the same call goes on from there; an image that
cannot be read is listed with its reason and skipped, and nothing else is.
Does not: delete images whose files are gone, or follow a folder that changes while it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from index.bulk.pipeline import batches, embed, run_in_background
from index.bulk.report import BuildReport, interruptible
from index.bulk.sources import read_file
from index.errors import FolderError, InvalidKeyError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage, check_key
from model_store.errors import ImageError
from model_store.image import DEFAULT_MAX_PIXELS, PreparedImage, encode_jpeg, find_images, inspect_and_prepare
from model_store.prefetch import prefetch
from model_store.runtime.runner import Runner


class KeyOf(Protocol):
    """How an image's key follows from its path and the folder being indexed."""

    def __call__(self, path: Path, folder: Path) -> str:
        """Return the key."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that was read; `prepared` is None when the index has these very bytes already."""

    key: str
    sha256: str
    size: int
    prepared: PreparedImage | None
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Files that were read: the images with their vectors, how many the index has already, and (path, reason)."""

    images: list[NewImage]
    unchanged: int
    skipped: list[tuple[Path | str, str]]


def relative_path(path: Path, folder: Path) -> str:
    """Return the path within the folder, with forward slashes: the usual key."""
    return path.relative_to(folder).as_posix()


def build_index(
    folder: Path,
    index: ImageIndex,
    runner: Runner,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[BuildReport], None] | None = None,
    key: KeyOf = relative_path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    keep_pictures: bool = True,
) -> BuildReport:
    """Add every image in `folder`, at any depth, to `index`; what it has already, bytes and model alike, is passed by.

    batch_size: images in one run and one commit. workers: threads that read and decode. progress: called after each
    batch with the report so far. key: the path within the folder by default. Ctrl-C ends it with what was committed.
    Raises FolderError when no file in `folder` is an image by its name, DatasetError when it is no folder, and whatever
    stops the index or the runner, with what was committed before kept.
    """
    paths = list(find_images(folder))
    if not paths:
        raise FolderError(folder, "has no images: none of its files ends in .jpg, .png, .webp, .gif, .bmp or .tiff.")
    report = BuildReport(total=len(paths))

    def read(path: Path) -> _Read:
        data = read_file(path)
        name = check_key(key(path, folder))
        sha256 = hashlib.sha256(data).hexdigest()
        if index.lookup([name]).get(name) == sha256:
            return _Read(name, sha256, len(data), None, None)
        prepared = inspect_and_prepare(data, max_pixels=max_pixels)
        picture = encode_jpeg(prepared.pixels) if keep_pictures else None
        return _Read(name, sha256, len(data), prepared, picture)

    def commit(batch: _Batch) -> list[AddOutcome]:
        return list(index.add_many(batch.images)) if batch.images else []

    with interruptible(report), prefetch(read, paths, workers, 2 * batch_size) as results:
        made = (_make(runner, batch) for batch in batches(results, batch_size))
        # A commit waits for the disk: the next batch is embedded meanwhile.
        for batch, outcomes in run_in_background(lambda batch: (batch, commit(batch)), made):
            report.skipped += batch.skipped
            report.added += outcomes.count(AddOutcome.ADDED)
            report.replaced += outcomes.count(AddOutcome.REPLACED)
            report.unchanged += batch.unchanged + outcomes.count(AddOutcome.UNCHANGED)
            report.seen += len(batch.images) + batch.unchanged + len(batch.skipped)
            if progress is not None:
                progress(report)
    return report


def _make(runner: Runner, batch: list[tuple[Path, Future[_Read]]]) -> _Batch:
    unchanged = 0
    skipped: list[tuple[Path | str, str]] = []
    fresh: list[tuple[_Read, PreparedImage]] = []
    for path, result in batch:
        try:
            image = result.result()
        except (OSError, ImageError, InvalidKeyError) as error:
            skipped.append((path, str(error)))
            continue
        if image.prepared is None:
            unchanged += 1
        else:
            fresh.append((image, image.prepared))
    vectors = embed(runner, [prepared.pixels for _, prepared in fresh]) if fresh else ()
    images = [
        NewImage(i.key, i.sha256, i.size, prepared.width, prepared.height, None, i.picture, vector)
        for (i, prepared), vector in zip(fresh, vectors, strict=True)
    ]
    return _Batch(images, unchanged, skipped)
