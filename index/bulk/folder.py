"""Add all images of a folder to the index, with progress. An interrupted build can be resumed.

Guarantees: committed images stay in the index when the build is interrupted, and the same call resumes from there;
every file of the folder that is not added is listed with its reason (`model_store.image_files`).
Out of scope: deleting images whose files were deleted; changes of the folder during the build.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from index.bulk.add import PreparedBatch, PreparedFile, prepare_file, skipped_file
from index.bulk.metadata import METADATA_FILE, ImageMetadata, add_with_metadata
from index.bulk.pipeline import batches_in_threads, embed, run_in_background
from index.bulk.report import BuildReport, count_outcomes, interruptible
from index.bulk.sources import NO_IMAGES, read_file
from index.errors import FolderError, InvalidKeyError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage, check_key
from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.image_files import Skipped, escape_name, find_images, summarize
from model_store.runtime.runner import Runner


@dataclass(frozen=True, slots=True)
class _Batch:
    """Embedded images. keys: of all its files; unchanged: keys of those that the index already has."""

    keys: list[str]
    images: list[NewImage]
    unchanged: list[str]
    skipped: list[Skipped]


def build_index(
    folder: Path,
    index: ImageIndex,
    runner: Runner,
    *,
    batch_size: int = 16,
    workers: int = 2,
    progress: Callable[[BuildReport], None] = lambda _: None,
    key_prefix: str = "",
    limits: DecodeLimits | None = None,
    keep_pictures: bool = True,
    metadata: ImageMetadata | None = None,
) -> BuildReport:
    """Add every image in `folder`, at any depth, to `index`.

    Images already indexed with the same bytes and model are skipped. Ctrl-C ends the build; what was committed stays.

    batch_size: images in a run of the model and in a commit. workers: threads that read, decode and embed.
    progress: called after each batch with the report so far. key_prefix: a key is this prefix and the path within the
    folder, with forward slashes, escaped by `escape_name`. limits: of decoding. metadata: of the images; by default
    none.
    Raises FolderError if no file in `folder` has the name of an image, DatasetError if the folder does not exist, and
    any error of the index or the runner.
    """
    report, metadata = BuildReport(), metadata or ImageMetadata()

    def key_of(path: Path) -> str:
        return key_prefix + escape_name(path.relative_to(folder).as_posix())

    def prepare(paths: list[Path]) -> _Batch:
        files = {key_of(path): path for path in paths}
        known = index.lookup(list(files))

        def read(key: str) -> PreparedFile | None:
            return prepare_file(key, read_file(files[key]), known.get(key), decoder=decoder, keep_picture=keep_pictures)

        found = PreparedBatch.of((key, partial(read, key)) for key in files)
        skipped = [skipped_file(str(files[key]), error) for key, error in found.skipped]
        return _Batch(list(files), _embed(runner, found), found.unchanged, skipped)

    def commit(batch: _Batch) -> tuple[_Batch, list[AddOutcome]]:
        given = {key: values for key in batch.keys if (values := metadata.of(key.removeprefix(key_prefix)))}
        outcomes, changed = add_with_metadata(index, batch.images, given, batch.unchanged)
        report.metadata_changed += changed
        return batch, outcomes

    paths = _find(folder, report, key_of)
    with (
        interruptible(report),
        Decoder(limits, workers=workers) as decoder,
        batches_in_threads(prepare, paths, size=batch_size, workers=workers, stop=decoder.close) as embedded,
    ):
        # A commit waits for the disk: the next batches are embedded meanwhile.
        for batch, outcomes in run_in_background(commit, embedded):
            for item in batch.skipped:
                report.skip(item)
            count_outcomes(report, [*outcomes, *[AddOutcome.UNCHANGED] * len(batch.unchanged)])
            progress(report)
    return report


def _embed(runner: Runner, batch: PreparedBatch[str]) -> list[NewImage]:
    """Return the images to add, without their pixels."""
    files = [file for _, file in batch.files]
    vectors = embed(runner, [file.image.pixels for file in files]) if files else ()
    return [file.new_image(vector) for file, vector in zip(files, vectors, strict=True)]


def _find(folder: Path, report: BuildReport, key_of: Callable[[Path], str]) -> list[Path]:
    """Return the images of the folder with a valid key, and count all files in the report.

    Raises FolderError, DatasetError.
    """
    found = list(
        find_images(folder, lambda item: None if item.path.endswith(f"/{METADATA_FILE}") else report.skip(item))
    )
    if not found:
        raise FolderError(folder, " ".join([NO_IMAGES, *summarize(report.skipped)]))
    report.total = len(found) + len(report.skipped)
    paths = []
    for path in found:
        try:
            check_key(key_of(path))
        except InvalidKeyError as error:
            report.skip(skipped_file(str(path), error))
        else:
            paths.append(path)
    return paths
