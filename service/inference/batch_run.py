"""One run of a batch: pixels of several images in, one prediction for each image out.

Out of scope: which images run together (see `batcher`), and retries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.image import views
from model_store.novelty.reference import Novelty
from model_store.runtime.runner import Outputs, average_views
from service.inference.admission import HeatMap, Prediction, QueuedImage


class InferFn(Protocol):
    """Runs the model (`Runner.run`): returns one output row for each row, uint8 [n,224,224,3]."""

    def __call__(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Outputs:
        """Run the model on all cores, or on one stream."""


# `Reference.measure`. One call for a batch is cheaper than one for each image.
MeasureFn = Callable[[NDArray[np.float32], NDArray[np.uint8]], list[Novelty]]
# Of one image: the probabilities and fc7, averaged over its views, and the heat map if it was explained.
_Means = tuple[NDArray[np.float32], NDArray[np.float32], HeatMap | None]


def run_batch(
    infer: Callable[[NDArray[np.uint8]], Outputs], images: Sequence[QueuedImage], measure: MeasureFn | None = None
) -> list[Prediction]:
    """Run the model once on all views of `images` and return one prediction per image. Raises what `infer` raises.

    Images to explain run in a second pass, through the graph for explanations instead of `infer`.
    """
    started = time.monotonic()
    plain = [image for image in images if image.explain is None]
    outputs = infer(np.concatenate([views(image.pixels, image.views) for image in plain])) if plain else None
    explained = _explain([image for image in images if image.explain is not None])
    run_seconds = time.monotonic() - started
    means: list[_Means] = []
    first = 0
    for image in images:
        if image.explain is not None or outputs is None:
            means.append(next(explained))
        else:
            rows = slice(first, first + image.views)
            first += image.views
            probabilities = average_views(outputs.probabilities[rows], image.views)
            means.append((probabilities[0], average_views(outputs.fc7[rows], image.views)[0], None))
    novelties: Sequence[Novelty | None] = [None] * len(images)
    if measure is not None:
        centers = views(np.stack([image.pixels for image in images]))
        novelties = measure(np.stack([fc7 for _, fc7, _ in means]), centers)
    return [
        Prediction(probabilities, fc7, started - image.queued_at, run_seconds, novelty, heat)
        for image, (probabilities, fc7, heat), novelty in zip(images, means, novelties, strict=True)
    ]


def _explain(images: Sequence[QueuedImage]) -> Iterator[_Means]:
    """Explain images, and return an iterator over the probabilities, fc7 and heat map of each."""
    tasks = [image.explain for image in images if image.explain is not None]
    if not tasks:
        return iter(())
    pixels = np.concatenate([views(image.pixels) for image in images])
    found = tasks[0].explainer.run(pixels, [task.target for task in tasks])
    maps = [HeatMap(int(index), values) for index, values in zip(found.explained, found.heat, strict=True)]
    return zip(found.probabilities, found.fc7, maps, strict=True)
