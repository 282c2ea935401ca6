"""Publishes a version of the small net, with its graph for explanations. Its fc7 has the served size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_store.artifact import Artifact
from model_store.runtime.explainer import EXPLAIN_FILE
from model_store.store import ModelStore
from model_store.training.export.served_graph import write_served_graph
from tests.support.tiny_model import tiny_draft
from tests.support.training.run_folder import small_architecture, small_net

LABELS = ("poly, defective", "poly, sound", "1")  # the label "1" has the index 2


def publish_explainable_model(
    home: Path, name: str = "small", labels: Sequence[str] = LABELS, *, seed: int = 0, explainable: bool = True
) -> Artifact:
    """Publish and activate a version. explainable: with the graph for explanations; earlier releases wrote none."""
    store = ModelStore(home)
    with store.staging(name) as folder:
        mean = np.full((256, 256, 3), 120, np.float32)
        write_served_graph(small_net(small_architecture(classes=len(labels)), seed), mean, folder)
        if not explainable:
            (folder / EXPLAIN_FILE).unlink()
        artifact = store.publish(folder, tiny_draft(name, labels))
    store.activate(artifact.name, artifact.version)
    return artifact
