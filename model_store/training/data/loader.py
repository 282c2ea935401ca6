"""Open a run's data set, and read its batches ahead of the device.

Guarantees: batches come in the requested order. While the device processes one, workers decode the next ones.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.decoder.decoder import Decoder
from model_store.image_files import SkipKind, summarize
from model_store.prefetch import prefetch
from model_store.training.data.dataset import Dataset, ImageSet
from model_store.training.data.reader import open_dataset
from model_store.training.data.shards import is_sharded, open_shards
from model_store.training.data.sources import find_source
from model_store.training.data.split import SplitRule
from model_store.training.reporting import Reporter
from model_store.training.runs.run import SKIPPED_FILE

PREFETCH_BATCHES: Final = 4
# Two batches are read at the same time, so that no worker is idle while the last image of one is decoded.
_READERS: Final = 2
_EXAMPLES: Final = 5  # listed in a message


def open_data(
    data: Path,
    memory_budget: int,
    workers: ThreadPoolExecutor,
    decoder: Decoder,
    reporter: Reporter,
    *,
    rule: SplitRule | None = None,
) -> Dataset:
    """Open a data set of any form, and report size, skipped files and duplicates.

    rule: how images are chosen for validation if there are none. Raises DatasetError, TableError.
    """
    if is_sharded(data):
        dataset = open_shards(data, memory_budget=memory_budget, workers=workers, decoder=decoder)
    else:
        dataset = open_dataset(
            find_source(data),
            memory_budget=memory_budget,
            workers=workers,
            decoder=decoder,
            rule=rule,
            progress=reporter.reading,
        )
    where = "in memory" if dataset.train.in_memory else "decoded on demand (they exceed the memory budget)"
    reporter.note(
        f"{len(dataset.train)} training images, {len(dataset.val)} validation images, {len(dataset.classes)} classes; "
        f"images are {where}."
    )
    for text in dataset.notes:
        reporter.note(text)
    if dataset.skipped:
        lines = [
            f"{len(dataset.skipped)} files are not used; {SKIPPED_FILE} in the run's folder lists all of them:",
            *summarize(dataset.skipped),
        ]
        only_hidden = all(item.kind is SkipKind.HIDDEN for item in dataset.skipped)
        (reporter.note if only_hidden else reporter.warn)("\n  ".join(lines))
    if dataset.duplicates:
        examples = "; ".join(f"{val} is the same as {train}" for train, val in dataset.duplicates[:_EXAMPLES])
        reporter.warn(
            f"{len(dataset.duplicates)} validation images are also in train, byte for byte, so the validation error "
            f"will be too low. Examples: {examples}"
        )
    if dataset.conflicts:
        examples = "; ".join(f"{first} and {second}" for first, second in dataset.conflicts[:_EXAMPLES])
        reporter.warn(
            f"{len(dataset.conflicts)} pictures are in two classes, byte for byte: {examples}. Keep each in one class."
        )
    return dataset


def batches(
    images: ImageSet, positions: Iterable[NDArray[np.int64]], *, pinned: bool = False
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield (pixels uint8 [n, 256, 256, 3], labels int64 [n]) for each batch of positions.

    pinned: use page-locked memory, for asynchronous copies to a CUDA device. Close the generator to stop reading.
    Raises DatasetError if an image can no longer be read.
    """

    def read(batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        pixels, labels = torch.from_numpy(images.pixels(batch)), torch.from_numpy(images.labels[batch])
        return (pixels.pin_memory(), labels.pin_memory()) if pinned else (pixels, labels)

    with prefetch(read, positions, _READERS, PREFETCH_BATCHES) as results:
        for _, future in results:
            yield future.result()
