"""Novelty in the answers to requests: the threshold that applies, and counting for the metrics."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.schemas.answers import NoveltyInfo
from service.inference.admission import Prediction
from service.inference.model_pool import Serving
from service.state import State


def novelty_of(
    state: State, serving: Serving, predictions: Sequence[Prediction], threshold: float | None
) -> list[NoveltyInfo | None]:
    """Return the novelty of each image, None if the version has no reference, and count the images for the metrics.

    threshold: of the request, 0 to 1; None for the setting's.
    """
    if threshold is None:
        threshold = state.settings.novelty_threshold
    state.metrics.drift.count(
        serving.artifact.id,
        [int(prediction.probabilities.argmax()) for prediction in predictions],
        [prediction.novelty for prediction in predictions],
        threshold,
    )
    return [NoveltyInfo.of(prediction.novelty, threshold) for prediction in predictions]
