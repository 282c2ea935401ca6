"""A run's data: opened and spoken of, and read in batches ahead of the device that trains on them.

Promises: batches come in the order asked for, whatever thread was faster; while the device works on one, workers decode
the next ones.
Does not: augment (augment.py does, on the device), or keep batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.training.data.class_folders import open_dataset
from model_store.training.data.dataset import Dataset, ImageSet
from model_store.training.data.shards import is_sharded, open_shards
from model_store.training.reporting import Reporter
from model_store.training.runs.run import SKIPPED_FILE

READ_AHEAD: Final = 3  # batches
# Two batches are asked for at once, so that no worker is idle while the last image of one is decoded.
_AT_ONCE: Final = 2
_LISTED: Final = 5  # examples in a message


def open_data(data: Path, memory_budget: int, workers: ThreadPoolExecutor, reporter: Reporter) -> Dataset:
    """Open class folders or prepared shards, and tell what they hold, what was skipped, and what is in both splits.

    Raises DatasetError.
    """
    if is_sharded(data):
        dataset = open_shards(data, memory_budget=memory_budget, workers=workers)
    else:
        dataset = open_dataset(data, memory_budget=memory_budget, workers=workers, progress=reporter.reading)
    where = "in memory" if dataset.train.in_memory else "decoded as they are needed: over the memory budget"
    reporter.note(
        f"{len(dataset.train)} training, {len(dataset.val)} validation images, {len(dataset.classes)} classes, {where}"
    )
    if dataset.skipped:
        listed = "; ".join(f"{item.path}: {item.reason}" for item in dataset.skipped[:_LISTED])
        more = f"; and {len(dataset.skipped) - _LISTED} more" if len(dataset.skipped) > _LISTED else ""
        reporter.warn(f"{len(dataset.skipped)} files were skipped ({SKIPPED_FILE} lists all): {listed}{more}")
    if dataset.duplicates:
        listed = "; ".join(f"{pair.val} is {pair.train}" for pair in dataset.duplicates[:_LISTED])
        reporter.warn(
            f"{len(dataset.duplicates)} images are in val and, byte for byte, in train: the validation error will be "
            f"too good. {listed}"
        )
    return dataset


def batches(
    images: ImageSet, positions: Iterable[NDArray[np.int64]], *, pinned: bool = False
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield (pixels uint8 [n, 256, 256, 3], labels int64 [n]) for the positions of each batch.

    pinned: in memory from which a CUDA device fetches by itself. Close the iterator to stop reading ahead.
    Raises DatasetError when an image can no longer be read.
    """

    def read(at: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        pixels, labels = torch.from_numpy(images.pixels(at)), torch.from_numpy(images.labels[at])
        return (pixels.pin_memory(), labels.pin_memory()) if pinned else (pixels, labels)

    pool = ThreadPoolExecutor(_AT_ONCE, "read")
    waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
    try:
        for at in positions:
            waiting.append(pool.submit(read, at))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
