"""Re-embed every indexed image with another model, from the stored pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bulk.pipeline import batches_in_threads, decode_picture, embed
from index.bulk.report import ReembedReport, interruptible
from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE
from index.catalog.lock import FolderLock, check_exists
from index.errors import FolderError
from index.records import Unembedded, encode_vectors
from model_store.manifest import FEATURES
from model_store.runtime.runner import Runner


def reembed(
    home: Path,
    runner: Runner,
    *,
    batch_size: int = 16,
    workers: int = 2,
    progress: Callable[[ReembedReport], None] = lambda _: None,
) -> ReembedReport:
    """Compute the missing vectors of the runner's model for the index in `home`, then switch search to this model.

    Search uses the previous model until all vectors are computed. Images without a usable picture are listed in the
    report; after the switch, search finds them only once they are added again. Ctrl-C keeps the vectors computed so
    far, and the next call resumes.
    Raises IndexUnavailableError if there is no index, IndexLockedError and the errors of opening a catalog, and
    FolderError if no image could be embedded.
    """
    folder = home / "index"
    check_exists(folder)
    with closing(FolderLock(folder)), Catalog(folder / CATALOG_FILE) as catalog:
        space = catalog.ensure_space(runner.artifact.fingerprint, runner.artifact.embedder)
        catalog.set_target(space.id)
        report = ReembedReport(space.missing_vectors)
        images = _images_without_vector(catalog, space.id)
        with (
            interruptible(report),
            batches_in_threads(partial(_embed, runner), images, size=batch_size, workers=workers) as results,
        ):
            for embedded, vectors, skipped in results:
                report.skipped += skipped
                if embedded:
                    report.embedded += catalog.add_vectors(space.id, embedded, vectors)
                progress(report)
        if not report.interrupted:
            if report.total and not report.embedded:
                raise FolderError(
                    folder, "stores no pictures to embed again. Index the files again: fc7 index build DIR --rebuild"
                )
            catalog.activate_space(space.id)
            while catalog.drop_unused_vectors():
                pass
        return report


def _embed(
    runner: Runner, images: list[Unembedded]
) -> tuple[list[Unembedded], NDArray[np.float16], list[tuple[str, str]]]:
    """Return the images that have a usable picture, their vectors, and the keys of the others with the reasons."""
    decoded = [(image, decode_picture(image.picture)) for image in images]
    skipped = [(image.key, reason) for image, reason in decoded if isinstance(reason, str)]
    usable = [(image, pixels) for image, pixels in decoded if not isinstance(pixels, str)]
    pixels = [found for _, found in usable]
    vectors = encode_vectors(embed(runner, pixels)) if pixels else np.empty((0, FEATURES), np.float16)
    return [image for image, _ in usable], vectors, skipped


def _images_without_vector(catalog: Catalog, space: int) -> Iterator[Unembedded]:
    """Yield the images without a vector in `space`, in the order of their ids."""
    after = 0
    while page := catalog.unembedded(space, after, 64):
        yield from page
        after = page[-1].id
