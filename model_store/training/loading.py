"""Batches of prepared pixels, read ahead of the device that trains on them.

Promises: batches come in the order asked for, whatever thread was faster; while the device works on one, workers decode
the next ones.
Does not: augment (augment.py does, on the device), or keep batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.training.dataset import ImageSet

READ_AHEAD: Final = 3  # batches
# Two batches are asked for at once, so that no worker is idle while the last image of one is decoded.
_AT_ONCE: Final = 2


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
