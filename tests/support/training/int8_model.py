"""Publishes a version of the small net in fp32 and int8, and the images that it was calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model_store.artifact import Artifact
from model_store.store import ModelStore
from model_store.training.export.quantize import add_precisions
from model_store.training.export.served_graph import write_served_graph
from tests.support.tiny_model import tiny_draft
from tests.support.training.run_folder import CLASSES, small_architecture, small_net, write_pictures


def publish_int8_model(home: Path, data: Path) -> Artifact:
    """Publish and activate small:2, which has int8 files, and write 24 images below `data`."""
    for split in ("train", "val"):
        write_pictures(data, split)
    store = ModelStore(home)
    with store.staging("small") as folder:
        write_served_graph(small_net(small_architecture()), np.full((256, 256, 3), 120, np.float32), folder)
        published = store.publish(folder, tiny_draft("small", CLASSES))
    artifact = add_precisions(published, store, ["int8"], data)
    return store.activate(artifact.name, artifact.version)
