"""Add all images of a folder to the index, with progress. An interrupted build can be resumed.

Guarantees: committed images stay in the index when the build is interrupted, and the same call resumes from there;
every file of the folder that is not added is listed with its reason (`model_store.image_files`).
Out of scope: deleting images whose files were deleted; changes of the folder during the build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

from index.bulk.add import PreparedBatch, PreparedFile, prepare_file, skipped_file
from index.bulk.metadata import METADATA_FILE, ImageMetadata, add_with_metadata
from index.bulk.pipeline import batches, embed, run_in_background
from index.bulk.report import BuildReport, count_outcomes, interruptible
from index.bulk.sources import NO_IMAGES, read_file
from index.errors import FolderError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage, check_key
from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.image_files import escape_name, find_images, summarize
from model_store.prefetch import prefetch
from model_store.runtime.runner import Runner

_Batch = PreparedBatch[Path]


def build_index(
    folder: Path,
    index: ImageIndex,
    runner: Runner,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[BuildReport], None] = lambda _: None,
    key_prefix: str = "",
    limits: DecodeLimits | None = None,
    keep_pictures: bool = True,
    metadata: ImageMetadata | None = None,
) -> BuildReport:
    """Add every image in `folder`, at any depth, to `index`.

    Images already indexed with the same bytes and model are skipped. Ctrl-C ends the build; what was committed stays.

    batch_size: images in a run of the model and in a commit. workers: threads that read and decode. progress: called
    after each batch with the report so far. key_prefix: a key is this prefix and the path within the folder, with
    forward slashes, escaped by `escape_name`. limits: of decoding. metadata: of the images; by default none.
    Raises FolderError if no file in `folder` has the name of an image, DatasetError if the folder does not exist, and
    any error of the index or the runner.
    """
    report, metadata = BuildReport(), metadata or ImageMetadata()
    paths = _find(folder, report)

    def name_of(path: Path) -> str:
        return escape_name(path.relative_to(folder).as_posix())

    def read(path: Path) -> PreparedFile | None:
        data, key = read_file(path), check_key(key_prefix + name_of(path))
        known = index.lookup([key]).get(key)
        return prepare_file(key, data, known, decoder=decoder, keep_picture=keep_pictures)

    def commit(embedded: tuple[_Batch, list[NewImage]]) -> tuple[_Batch, list[AddOutcome]]:
        batch, images = embedded
        unchanged = {key_prefix + name_of(path): path for path in batch.unchanged}
        path_of = {file.key: path for path, file in batch.files} | unchanged
        given = {key: values for key, path in path_of.items() if (values := metadata.of(name_of(path)))}
        outcomes, changed = add_with_metadata(index, images, given, unchanged)
        report.metadata_changed += changed
        return batch, outcomes

    with (
        interruptible(report),
        Decoder(limits, workers=workers) as decoder,
        prefetch(read, paths, workers, 2 * batch_size) as results,
    ):
        embedded = (_embed(runner, batch) for batch in batches(results, batch_size))
        # A commit waits for the disk: the next batch is embedded meanwhile.
        for batch, outcomes in run_in_background(commit, embedded):
            for path, error in batch.skipped:
                report.skip(skipped_file(str(path), error))
            count_outcomes(report, [*outcomes, *[AddOutcome.UNCHANGED] * len(batch.unchanged)])
            progress(report)
    return report


def _find(folder: Path, report: BuildReport) -> list[Path]:
    """Return the images of the folder, and count all files in the report. Raises FolderError, DatasetError."""
    paths = list(
        find_images(folder, lambda item: None if item.path.endswith(f"/{METADATA_FILE}") else report.skip(item))
    )
    if not paths:
        raise FolderError(folder, " ".join([NO_IMAGES, *summarize(report.skipped)]))
    report.total = len(paths) + len(report.skipped)
    return paths


def _embed(
    runner: Runner, results: Iterable[tuple[Path, Future[PreparedFile | None]]]
) -> tuple[_Batch, list[NewImage]]:
    batch = PreparedBatch.of(results)
    files = [file for _, file in batch.files]
    vectors = embed(runner, [file.image.pixels for file in files]) if files else ()
    return batch, [file.new_image(vector) for file, vector in zip(files, vectors, strict=True)]
