"""Find the net that a run starts from (fine-tuning): another run or a published version, trained here or imported.

Guarantees: before its first step, the new net gives the same outputs as its parent, even if their dropout and input
scale differ. Classes are matched by label. If the classes differ, fc8 is initialized randomly.
Out of scope: the parent's mean image (the new training set has its own) and the velocities of its optimizer.
References: the paper, section 6 (nets pre-trained on more classes and then fine-tuned on 1,000).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from model_store.artifact import Artifact
from model_store.errors import CheckpointError, DatasetError
from model_store.store import ModelStore
from model_store.training.data.split import run_data
from model_store.training.export.served_graph import read_served_weights
from model_store.training.nets.alexnet import Architecture
from model_store.training.runs.fine_tuning import Parent
from model_store.training.runs.run import RUN_FILE, find_trained_run, load_run, read_info


def find_run_folder(home: Path, reference: str, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the folder of the newest run `reference`, or None for `name:version` or if only a version has that name.

    say: told in words if a newer run is not used because it has no weights. Raises CheckpointError if neither a run nor
    a version has that name, or if the run has no weights.
    """
    if ":" in reference:
        return None
    try:
        return find_trained_run(home, reference, say)
    except CheckpointError:
        if any(artifact.name == reference for artifact in ModelStore(home).list()):
            return None
        raise


def version_data(home: Path, artifact: Artifact, given: Path | None = None) -> Path:
    """Return the data set that a version was trained on, with the split that its run recorded.

    given: another data set, which is returned unless it is the run's own. Raises DatasetError if neither is known.
    """
    run = artifact.manifest.parent_run
    if run is not None and (home / "runs" / run / RUN_FILE).is_file():
        return run_data(home / "runs" / run, read_info(home / "runs" / run), given)
    if given is None:
        raise DatasetError(
            f"The images that {artifact.id} was trained on are not known here: its run is not in {home / 'runs'}. "
            "Give a data set with --data."
        )
    return given


def find_parent(home: Path, reference: str, say: Callable[[str], None] = lambda _: None) -> Parent:
    """Return the version `name:version`, the newest run `reference`, or (if there is none) the newest version.

    say: as in `find_run_folder`. Raises ModelNotFoundError or CheckpointError if it does not exist, or CheckpointError
    if the version's manifest does not describe its architecture.
    """
    folder = find_run_folder(home, reference, say)
    if folder is None:
        return _from_version(ModelStore(home).resolve(reference))
    run = load_run(folder)
    return Parent(folder.resolve().name, run.info.architecture, run.info.classes, run.network.state_dict())


def _from_version(artifact: Artifact) -> Parent:
    table = artifact.manifest.recipe.get("architecture")
    if not isinstance(table, Mapping):
        raise CheckpointError(
            f"The manifest of {artifact.id} does not describe its architecture. Fine-tune from its run instead."
        )
    architecture = Architecture.from_dict(table)
    arrays = read_served_weights(artifact.path, architecture)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Parent(artifact.id, architecture, artifact.labels, weights)
