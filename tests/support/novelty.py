"""A tiny version with a reference for novelty, and images that it knows and does not know.

Guarantees: its training and validation images are scenes; `FOREIGN` is far from all of them, and `OWN` is a scene that
is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from model_store.artifact import Artifact
from model_store.image import prepare, views
from model_store.novelty.fit import calibrated, fit
from model_store.novelty.reference import NOVELTY_FILE, Reference
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from tests.support import pictures
from tests.support.tiny_model import CLASSES, publish_tiny_model, tiny_draft, write_tiny_graph

TRAINING = range(100, 140)  # seeds of scenes
VALIDATION = range(200, 240)
OWN = pictures.jpeg(300)
FOREIGN = pictures.encoded(Image.new("RGB", (300, 300), (255, 255, 0)))


def reference_of(
    training: Sequence[int] = TRAINING, validation: Sequence[int] = VALIDATION, seed: int = 0
) -> Reference:
    """Return the reference of the tiny net with this seed, from scenes with these seeds."""
    with TemporaryDirectory() as folder:
        runner = Runner(publish_tiny_model(Path(folder), seed=seed, activate=False))
        own, others = (
            runner.run(np.concatenate([views(prepare(pictures.jpeg(each))) for each in seeds]))
            for seeds in (training, validation)
        )
        runner.close()
    reference = fit(own.fc7)
    distances = reference.distances_of(others.fc7)
    return calibrated(reference, distances, others.probabilities.argmax(axis=1), len(CLASSES))


def publish_with_reference(home: Path, reference: Reference | None = None, *, seed: int = 0) -> Artifact:
    """Publish and activate a tiny version with a reference."""
    store = ModelStore(home)
    with store.staging("tiny") as folder:
        write_tiny_graph(folder, seed=seed)
        (folder / NOVELTY_FILE).write_bytes((reference or reference_of(seed=seed)).to_bytes())
        artifact = store.publish(folder, tiny_draft())
    return store.activate(artifact.name, artifact.version)
