"""Re-embed every indexed image with another model, from the stored pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bulk.pipeline import batches, embed
from index.bulk.report import ReembedReport, interruptible
from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE
from index.catalog.lock import FolderLock, check_exists
from index.errors import FolderError
from index.records import Unembedded, encode_vectors
from model_store.errors import ImageError
from model_store.image import inspect_and_prepare
from model_store.prefetch import prefetch
from model_store.runtime.runner import Runner


def reembed(
    home: Path,
    runner: Runner,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[ReembedReport], None] | None = None,
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
    lock = FolderLock(folder)
    try:
        with Catalog(folder / CATALOG_FILE) as catalog:
            space = catalog.start_migration(runner.artifact.fingerprint, runner.artifact.embedder)
            total = next(each.missing_vectors for each in catalog.spaces() if each.id == space)
            report = ReembedReport(total=total)
            with (
                interruptible(report),
                prefetch(_decode, _images_without_vector(catalog, space), workers, 2 * batch_size) as results,
            ):
                for batch in batches(results, batch_size):
                    _embed_batch(catalog, space, runner, batch, report)
                    if progress is not None:
                        progress(report)
            if not report.interrupted:
                if total and not report.embedded:
                    raise FolderError(
                        folder,
                        "stores no pictures to embed again. Index the files again: fc7 index build DIR --rebuild",
                    )
                catalog.activate_space(space)
                catalog.drop_unused_spaces()
            return report
    finally:
        lock.close()


def _embed_batch(
    catalog: Catalog,
    space: int,
    runner: Runner,
    batch: list[tuple[Unembedded, Future[NDArray[np.uint8] | None]]],
    report: ReembedReport,
) -> None:
    images, pixels = [], []
    for image, result in batch:
        try:
            decoded = result.result()
        except ImageError as error:
            report.skipped.append((image.key, f"The stored picture is damaged: {error}"))
            continue
        if decoded is None:
            report.skipped.append((image.key, "No picture is stored."))
        else:
            images.append(image)
            pixels.append(decoded)
    if images:
        report.embedded += catalog.add_vectors(space, images, encode_vectors(embed(runner, pixels)))


def _decode(image: Unembedded) -> NDArray[np.uint8] | None:
    return None if image.picture is None else inspect_and_prepare(image.picture).pixels


def _images_without_vector(catalog: Catalog, space: int) -> Iterator[Unembedded]:
    """Yield the images without a vector in `space`, in the order of their ids."""
    after = 0
    while page := catalog.unembedded(space, after, 64):
        yield from page
        after = page[-1].id
