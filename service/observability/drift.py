"""Metrics that show whether the images of requests still resemble the validation images of the model.

Guarantees: the shares among the validation images are metrics too, so a dashboard can compare them without other data.
At most 100 classes of a model have a label of their own.
Out of scope: deciding when there is drift (see docs/novelty.md).
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.utils import floatToGoString

from model_store.artifact import Artifact
from model_store.novelty.reference import Novelty, Reference

PERCENTILES: Final = (10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
MAX_CLASSES: Final = 100
OTHER: Final = "(other classes)"


class DriftMetrics:
    """Counts the answers of each model by predicted class and by novelty. Thread-safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._names: dict[str, tuple[str, ...]] = {}  # by model: the label of each class
        self._unknown = Counter(
            "fc7_unknown_images_total",
            "Images of requests that were answered as unknown.",
            ("model",),
            registry=registry,
        )
        self._percentiles = Histogram(
            "fc7_novelty_percentile",
            "Share (%) of the validation images that are nearer to the training images than an image of a request.",
            ("model",),
            buckets=PERCENTILES,
            registry=registry,
        )
        self._classes = Counter(
            "fc7_predicted_images_total",
            "Images of requests by their best class.",
            ("model", "class"),
            registry=registry,
        )
        self._validation_percentiles = Gauge(
            "fc7_novelty_validation_share",
            "Share (0 to 1) of the validation images up to a percentile of novelty.",
            ("model", "le"),
            registry=registry,
        )
        self._validation_classes = Gauge(
            "fc7_predicted_validation_share",
            "Share (0 to 1) of the validation images by their best class.",
            ("model", "class"),
            registry=registry,
        )

    def add_model(self, artifact: Artifact, reference: Reference | None) -> None:
        """Start to count for a version that was loaded, and export the shares among its validation images."""
        model, labels = artifact.id, artifact.labels
        shares = None if reference is None or len(reference.class_shares) != len(labels) else reference.class_shares
        self._names[model] = names = _class_names(labels, shares)
        if reference is None:
            return
        self._unknown.labels(model)
        own = reference.percentiles_of(reference.distances)
        for bound in (*PERCENTILES, float("inf")):
            self._validation_percentiles.labels(model, floatToGoString(bound)).set(float((own <= bound).mean()))
        if shares is not None:
            for name in dict.fromkeys(names):
                chosen = [index for index, other in enumerate(names) if other == name]
                self._validation_classes.labels(model, name).set(float(shares[chosen].sum()))

    def count(self, model: str, best: Sequence[int], novelties: Sequence[Novelty | None], threshold: float) -> None:
        """Count images that were answered by `model` ("solar:1"). best: the index of the best class of each."""
        names = self._names[model]
        for name, images in Counts(names[index] for index in best).items():
            self._classes.labels(model, name).inc(images)
        for novelty in novelties:
            if novelty is not None:
                self._percentiles.labels(model).observe(novelty.percentile)
                if novelty.unknown(threshold):
                    self._unknown.labels(model).inc()


def _class_names(labels: Sequence[str], shares: NDArray[np.float32] | None) -> tuple[str, ...]:
    """Return the label of each class; of more than 100 classes, only the 99 most frequent ones keep their own."""
    if len(labels) <= MAX_CLASSES:
        return tuple(labels)
    frequency = np.zeros(len(labels)) if shares is None else shares
    kept = set(np.argsort(-frequency, kind="stable")[: MAX_CLASSES - 1].tolist())
    return tuple(label if index in kept else OTHER for index, label in enumerate(labels))
