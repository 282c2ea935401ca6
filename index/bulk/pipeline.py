"""Images to vectors in batches: decoding in threads ahead of the runner, whoever asks and wherever the images lie.

Promises: results come in the order of the items, each once; no more than a window of them is held at a time; what
was handed over to be written is written, and told, also when the making of the next is interrupted.
Does not: know an index, catch what the work raises (its future does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from model_store.image import views
from model_store.prefetch import In, Out
from model_store.runtime.runner import Runner


def embed(runner: Runner, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return fc7, float32 [n,4096], of the central views of prepared pictures, each uint8 [256,256,3]."""
    return runner.run(views(np.stack(pixels))).fc7


def run_in_background(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Yield `work` of each item, done in a thread while the next item is made; none runs while the reader has a result.

    What `items` raises, Ctrl-C too, comes after the work under way was done and yielded; what `work` raises, at once.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fc7-commit") as executor:
        running: Future[Out] | None = None
        try:
            for item in items:
                if running is not None:
                    done = running.result()
                    running = None
                    yield done
                running = executor.submit(work, item)
        except BaseException:
            if running is not None:
                yield running.result()
            raise
        if running is not None:
            yield running.result()


def batches(items: Iterable[In], size: int) -> Iterator[list[In]]:
    """Yield the items in lists of `size`, the last one shorter."""
    batch: list[In] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
