"""Steps of the bulk pipeline: decode and embed batches in several threads, and write one while the next are embedded.

A thread decodes the images of a batch and then runs the model on them, on one stream. So all cores are busy, and no
thread waits for another one.
Guarantees: results come in the order of the items, each exactly once; a write that was started is finished and its
result is yielded, even when the source of the items raises.
Out of scope: the index. The caller passes the function that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ImageError
from model_store.image import inspect_and_prepare, views
from model_store.prefetch import In, Out, prefetch
from model_store.runtime.runner import Runner


@contextmanager
def batches_in_threads(
    work: Callable[[list[In]], Out],
    items: Iterable[In],
    *,
    size: int,
    workers: int,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Iterator[Out]]:
    """Run `work` on lists of `size` items in `workers` threads; the block gets the results.

    At most `workers` + 2 lists are in work or wait for the reader, which limits the memory. An exception of `work` is
    raised where its result would come. When the block ends, work that was not started is cancelled, and the rest is
    waited for. stop: called before that; if it makes running work raise, Ctrl-C does not wait for whole batches.
    """
    with prefetch(work, batches(items, size), workers, workers + 2) as results:
        try:
            yield (future.result() for _, future in results)
        finally:
            stop()


def embed(runner: Runner, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the fc7 activations, float32 [n, 4096], of the center views of prepared images, each uint8 [256,256,3].

    One stream is used, because other threads run batches of their own.
    """
    return runner.run(views(np.stack(pixels)), all_cores=False).fc7


def decode_picture(picture: bytes | None) -> NDArray[np.uint8] | str:
    """Return the pixels of a stored picture, uint8 [256, 256, 3], or the reason why it cannot be embedded."""
    if picture is None:
        return "its picture is not stored"
    try:
        return inspect_and_prepare(picture).pixels
    except ImageError as error:
        return f"its stored picture is damaged: {error}"


def run_in_background(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Yield the result of `work` for each item; `work` runs in a thread while the next item is produced.

    `work` never runs while the caller handles a result. An exception of `items`, Ctrl-C included, is raised after the
    running work has finished and its result was yielded. An exception of `work` is raised immediately.
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
    """Yield the items in lists of `size`; the last list may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
