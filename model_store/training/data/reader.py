"""Read every image of a data set: prepare and hash it, divide the images if necessary, and compute the statistics.

Guarantees: every image is prepared by a `Decoder`, as in serving. If the pixels fit the memory budget, each file is
read once. Every file that is not used is listed with the reason.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.image import PREPARATION, SIZE
from model_store.image_files import Skipped, escape_name
from model_store.prefetch import prefetch
from model_store.training.data.dataset import IMAGE_BYTES, SPLITS, Dataset, ImageSet, Progress, Split
from model_store.training.data.image_file import ALL, ImageFile, LoadedImage, Source, load_image
from model_store.training.data.perceptual_hash import perceptual_hash
from model_store.training.data.sources import class_notes, require_trainable
from model_store.training.data.split import Fingerprint, SplitRule, split_source, split_to_make
from model_store.training.statistics import Sums

PREFETCH: Final = 32  # images decoded ahead of the one that is processed
SMALL_SIDE: Final = 32  # pixels; shorter sides are reported, because little of such a picture is left to learn


def open_dataset(
    source: Source,
    *,
    memory_budget: int,
    workers: ThreadPoolExecutor,
    decoder: Decoder,
    rule: SplitRule | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Dataset:
    """Read every training and validation image of `source`. If it has no images for validation, `rule` chooses them.

    memory_budget: bytes available for prepared pixels (196,608 per image). If not all of them fit, none are kept.
    Raises DatasetError if the images cannot be used for training (`require_trainable`), or none of a class is readable.
    """
    require_trainable(source)
    divided = split_to_make(source)
    reader = _Reader(source, memory_budget, workers, decoder, progress, passes=1 if divided is None else 2)
    if divided is not None:
        source = split_source(source, reader.fingerprints(source.splits[divided]), rule or SplitRule())
    sums = Sums()
    digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
    sets: dict[Split, ImageSet] = {}
    for split in SPLITS:
        readable: list[ImageFile] = []
        for image, loaded in reader.load(source.splits[split], with_sums=True):
            readable.append(image)
            reader.paths[loaded.sha256][split].setdefault(image.label, image)
            digest.update(f"{split}\0{image.label}\0{loaded.sha256}\n".encode())
            if split == "train" and loaded.sums is not None:
                sums.add(loaded.pixels, loaded.sums)
        require_every_class(source, split, readable)
        sets[split] = reader.image_set(readable)
    source = replace(source, notes=(*source.notes, *class_notes(source), *reader.notes()))
    duplicates, conflicts = reader.copies()
    return Dataset(
        source.root,
        source.classes,
        sets["train"],
        sets["val"],
        sums.statistics(),
        digest.hexdigest(),
        tuple(reader.skipped),
        duplicates=duplicates,
        conflicts=conflicts,
        notes=source.notes,
        divided=None if divided is None else source,
    )


def read_fingerprints(
    images: Sequence[ImageFile], workers: ThreadPoolExecutor, decoder: Decoder, progress: Progress
) -> tuple[dict[ImageFile, Fingerprint], list[Skipped]]:
    """Return what `split_source` compares, of the readable images, and the images that cannot be read."""
    reader = _Reader(Source(Path(), "", (), {ALL: tuple(images)}), 0, workers, decoder, progress, passes=1)
    return reader.fingerprints(images), reader.skipped


class _Reader:
    """Loads images, and keeps their pixels if all of them fit the budget."""

    def __init__(
        self,
        source: Source,
        budget: int,
        workers: ThreadPoolExecutor,
        decoder: Decoder,
        progress: Progress,
        *,
        passes: int,
    ) -> None:
        images = [image for split, found in source.splits.items() if split != "test" for image in found]
        self.skipped = list(source.ignored)
        self._classes, self._workers, self._decoder, self._progress = source.classes, workers, decoder, progress
        keep = len(images) * IMAGE_BYTES <= budget
        self._pixels = np.empty((len(images), SIZE, SIZE, 3), np.uint8) if keep else None
        self._row_of = {image: row for row, image in enumerate(images)}
        self._loaded: dict[ImageFile, LoadedImage] = {}
        self._failed: set[ImageFile] = set()
        self._small: list[ImageFile] = []
        self._done, self._total = 0, len(images) * (1 if keep else passes)
        # By SHA-256, split and label, the first image
        self.paths: defaultdict[str, defaultdict[str, dict[str, ImageFile]]] = defaultdict(lambda: defaultdict(dict))

    def load(self, images: Sequence[ImageFile], *, with_sums: bool) -> Iterator[tuple[ImageFile, LoadedImage]]:
        """Yield the readable images, from memory if they are there; record the others in `skipped`."""
        files = [image for image in images if image not in self._loaded]
        with prefetch(
            partial(load_image, decoder=self._decoder, with_sums=with_sums or self._pixels is not None),
            files,
            self._workers,
            PREFETCH,
        ) as results:
            fresh = iter(results)
            for image in images:
                if image in self._loaded:
                    yield image, self._loaded[image]
                    continue
                _, future = next(fresh)
                loaded = future.result()
                self._done += 1
                self._progress(self._done, self._total)
                if not isinstance(loaded, Skipped):
                    yield image, self._keep(image, loaded)
                elif image not in self._failed:
                    self._failed.add(image)
                    self.skipped.append(loaded)

    def _keep(self, image: ImageFile, loaded: LoadedImage) -> LoadedImage:
        if loaded.shorter_side < SMALL_SIDE:
            self._small.append(image)
        if self._pixels is None:
            return loaded
        row = self._pixels[self._row_of[image]]
        row[:] = loaded.pixels
        self._loaded[image] = replace(loaded, pixels=row)
        return self._loaded[image]

    def fingerprints(self, images: Sequence[ImageFile]) -> dict[ImageFile, Fingerprint]:
        """Return what `split_source` compares, of the readable images. Raises DatasetError if there are none."""
        found = {
            image: Fingerprint(loaded.sha256, perceptual_hash(loaded.pixels))
            for image, loaded in self.load(images, with_sums=False)
        }
        if not found:
            first = self.skipped[-1]
            raise DatasetError(f"None of the {len(images):,} images can be read. {first.path}: {first.reason}")
        return found

    def image_set(self, images: Sequence[ImageFile]) -> ImageSet:
        """Return readable images as a split."""
        rows: NDArray[np.int64] = np.array([self._row_of[image] for image in images], np.int64)
        return ImageSet(images, self._classes, self._workers, self._decoder, pixels=self._pixels, rows=rows)

    def notes(self) -> list[str]:
        """Return a note about very small pictures."""
        small = list(dict.fromkeys(self._small))
        if not small:
            return []
        return [
            f"{len(small):,} pictures have a side of less than {SMALL_SIDE} pixels and are enlarged, for example "
            f"{escape_name(str(small[0].file))}. Remove them if they are thumbnails or placeholders."
        ]

    def copies(self) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        """Return the pictures that are in both splits, and those in two classes, as pairs of paths."""
        duplicates, conflicts = [], []
        for splits in self.paths.values():
            firsts = [next(iter(labels.values())) for labels in splits.values()]
            if len(firsts) == len(SPLITS):
                duplicates.append((_path(firsts[0]), _path(firsts[1])))
            by_label = {label: image for labels in splits.values() for label, image in labels.items()}
            if len(by_label) > 1:
                first, second, *_ = by_label.values()
                conflicts.append((_path(first), _path(second)))
        return tuple(sorted(duplicates)), tuple(sorted(conflicts))


def _path(image: ImageFile) -> str:
    return escape_name(str(image.file))


def require_every_class(source: Source, split: str, readable: Sequence[ImageFile]) -> None:
    """Raise DatasetError if none of the images of a class in the split can be read."""
    present = {image.label for image in readable}
    for label, images in source.counts(split).items():
        if label not in present:
            file = next(image.file for image in source.splits[split] if image.label == label)
            raise DatasetError(
                f"None of the {images:,} images of the class '{label}' in {escape_name(str(file.parent))} can be read: "
                "they are broken or not images. Replace them, or remove the class."
            )
