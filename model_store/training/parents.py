"""Begin a run from trained weights: of another run, or of a published version, trained here or imported.

Promises: before its first step the new net answers as its parent does, whatever form of dropout and input factor either
of them has, except for fc8 where the classes differ: that is drawn anew. Classes are matched by their labels.
Does not: take over the parent's mean image (the new training set has its own) or its optimiser's velocities.
Source: the paper, section 6: the nets pre-trained on more classes and then fine-tuned on 1,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from model_store.artifact import Artifact
from model_store.errors import CheckpointError
from model_store.store import ModelStore
from model_store.training.export.served_graph import read_served_weights
from model_store.training.nets.alexnet import Architecture
from model_store.training.runs.fine_tuning import Parent
from model_store.training.runs.run import find_run, load_run


def find_parent(home: Path, reference: str) -> Parent:
    """Return the version `name:version`, or the newest run called `reference`, or else that name's newest version.

    Raises CheckpointError when there is neither, or the version does not say how its net is built; ModelNotFoundError.
    """
    store = ModelStore(home)
    if ":" in reference:
        return _of_version(store.resolve(reference))
    try:
        folder = find_run(home, reference)
    except CheckpointError:
        if any(artifact.name == reference for artifact in store.list()):
            return _of_version(store.resolve(reference))
        raise
    run = load_run(folder)
    return Parent(folder.resolve().name, run.info.architecture, run.classes, run.network.state_dict())


def _of_version(artifact: Artifact) -> Parent:
    table = artifact.manifest.recipe.get("architecture")
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{artifact.id} does not say how its net is built: fine-tune from its run instead")
    architecture = Architecture.from_dict(table)
    arrays = read_served_weights(artifact.path, architecture)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Parent(artifact.id, architecture, artifact.labels, weights)
