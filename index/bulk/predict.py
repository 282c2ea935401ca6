"""Run the model on all images of a folder, an archive or a bucket, for results that are written to a file.

Guarantees: images come in the order of the source, each once; an image that cannot be read has an error instead of
outputs, and does not affect the others. All cores are used.
Out of scope: the index, and the format of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.bulk.archive import ArchiveLimits, SkippedEntryError, read_entries
from index.bulk.pipeline import batches_in_threads
from index.bulk.sources import MAX_FILE_BYTES, Skip, is_uri, open_source
from index.errors import DamagedArchiveError, ImageArchiveError, SourceError
from model_store.decoder.decoder import Decoder
from model_store.errors import ImageError
from model_store.image import views
from model_store.image_files import SkipKind, Skipped, reason_of
from model_store.novelty.reference import Novelty, Reference
from model_store.runtime.runner import Runner, average_views

_LIMITS: Final = ArchiveLimits(entries=100_000_000, image_bytes=MAX_FILE_BYTES, bytes=1 << 60)


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image of a source. name: its path within the source, escaped. read: returns the bytes, or raises OSError."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class PredictedImage:
    """The outputs for an image: probabilities float32 [K] and fc7 float32 [4096], or the reason why there are none.

    novelty: None also for a version without a reference.
    """

    name: str
    probabilities: NDArray[np.float32] | None
    fc7: NDArray[np.float32] | None
    error: str | None
    novelty: Novelty | None = None


def list_images(source: str, skip: Skip) -> Iterator[NamedImage]:
    """Yield the images of a folder, an archive (.zip, .tar, .tar.gz, .tar.bz2) or a URI, in a fixed order.

    skip: called for every other file. Raises SourceError, MissingExtraError.
    """
    path = Path(source)
    if is_uri(source) or path.is_dir():
        opened = open_source(source)
        opened.check()
        for name in opened.list(skip):
            yield NamedImage(name, partial(opened.read, name))
    elif path.is_file():
        yield from _archive_images(path, skip)
    else:
        raise SourceError(source, "there is no such folder or archive")


def predict(
    images: Iterable[NamedImage],
    runner: Runner,
    decoder: Decoder,
    *,
    workers: int,
    view_count: int = 1,
    reference: Reference | None = None,
    batch_size: int = 16,
) -> Iterator[list[PredictedImage]]:
    """Yield the outputs of the images in batches. view_count: 1 or 10; outputs are averaged over the views.

    decoder: is closed at the end. reference: for the novelty. workers: threads that read, decode and run the model.
    Raises RunnerError and the errors of `images`.
    """
    work = partial(_predict_batch, runner=runner, decoder=decoder, view_count=view_count, reference=reference)
    with batches_in_threads(work, images, size=batch_size, workers=workers, stop=decoder.close) as results:
        yield from results


def _predict_batch(
    batch: list[NamedImage], *, runner: Runner, decoder: Decoder, view_count: int, reference: Reference | None
) -> list[PredictedImage]:
    pixels: list[NDArray[np.uint8]] = []
    errors: dict[int, str] = {}
    for number, image in enumerate(batch):
        try:
            pixels.append(decoder.prepare(image.read()))
        except (OSError, ImageError) as error:
            errors[number] = reason_of(error)
    rows = iter(_rows(np.stack(pixels), runner, view_count, reference) if pixels else ())
    results = []
    for number, image in enumerate(batch):
        if number in errors:
            results.append(PredictedImage(image.name, None, None, errors[number]))
        else:
            probabilities, fc7, novelty = next(rows)
            results.append(PredictedImage(image.name, probabilities, fc7, None, novelty))
    return results


def _rows(
    pixels: NDArray[np.uint8], runner: Runner, view_count: int, reference: Reference | None
) -> Iterable[tuple[NDArray[np.float32], NDArray[np.float32], Novelty | None]]:
    """Yield the outputs for prepared images, uint8 [n,256,256,3]."""
    outputs = runner.run(views(pixels, view_count), all_cores=False)  # the other cores have batches of their own
    probabilities, fc7 = (average_views(values, view_count) for values in outputs)
    novelties = [None] * len(fc7) if reference is None else reference.measure(fc7, views(pixels))
    return zip(probabilities, fc7, novelties, strict=True)


def _archive_images(path: Path, skip: Skip) -> Iterator[NamedImage]:
    """Yield the images of an archive. Their bytes are read here, one after the other, and decoded elsewhere."""
    entry = None
    try:
        with closing(read_entries(path, _LIMITS)) as entries:
            for entry in entries:
                try:
                    if entry.skip is not None:
                        raise entry.skip
                    content = entry.read()
                except SkippedEntryError as error:
                    skip(Skipped(entry.name, error.reason, error.kind))
                except DamagedArchiveError as error:
                    skip(Skipped(entry.name, str(error), SkipKind.DAMAGED_ENTRY))
                    raise
                else:
                    yield NamedImage(entry.name, partial(bytes, content))
    except DamagedArchiveError as error:
        if entry is None:
            raise SourceError(str(path), f"it is damaged or not an archive ({error.reason})") from error
        skip(Skipped(str(path), f"The rest of the archive was not read: {error}", SkipKind.DAMAGED_ENTRY))
    except ImageArchiveError as error:
        raise SourceError(str(path), str(error)) from error
