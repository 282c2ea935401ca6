"""What a resumed run continues with: its recipe with the changes that are possible, and more epochs after its end.

Guarantees: a change that cannot be applied to a run is rejected, and the error names it. A run that is reopened for
more epochs keeps weights that can be exported at every moment.
Out of scope: the velocities of a finished run, which are not kept. Its optimizer starts with none.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from model_store.errors import CheckpointError
from model_store.training.errors import UnusableRunError
from model_store.training.nets.alexnet import AlexNet
from model_store.training.optim import build_optimizer, build_schedule
from model_store.training.recipe import Recipe
from model_store.training.runs.checkpoint import Position, write_checkpoint
from model_store.training.runs.run import (
    BEST_FILE,
    CHECKPOINT_FILE,
    MODEL_FILE,
    WEIGHTS_PREFIX,
    RunInfo,
    epoch_records,
    finished_epochs,
    has_weights,
    read_info,
    read_tensors,
    write_info,
)

# Values that do not affect the steps that were done. `epochs` affects the rates of the remaining steps.
_CHANGEABLE: Final = frozenset({"name", "epochs", "validate_every", "early_stop", "flat_loss_steps", "calibrate"})


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of the command line to a resumed run. recipe: None for the run's own, to which `settings` apply."""

    recipe: Recipe | None = None
    settings: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ResumedRun:
    """A run as it continues. finished: nothing is left to do. reopened: it was finished, and gets more epochs."""

    info: RunInfo
    finished: bool
    has_checkpoint: bool
    reopened: bool


def read_resumed(run: Path, changes: Changes) -> ResumedRun:
    """Read a run and apply the changes, without writing anything.

    Raises CheckpointError if a change is not possible, RecipeError if it is not valid.
    """
    info = read_info(run)
    finished, has_checkpoint = has_weights(run)
    if changes.seed not in (None, info.seed):
        raise CheckpointError(
            f"{run} was started with --seed {info.seed}, which cannot change. Resume it without --seed, or start a new "
            "run without --resume."
        )
    recipe = (changes.recipe or info.recipe).with_settings(changes.settings).completed_by(info.recipe)
    old, new = info.recipe.to_dict(), recipe.to_dict()
    changed = [key for key in old if old[key] != new[key]]
    if fixed := [key for key in changed if key not in _CHANGEABLE]:
        values = ", ".join(f"{key} {old[key]!r} -> {new[key]!r}" for key in fixed)
        raise CheckpointError(
            f"{run} was started with another recipe ({values}). Only {', '.join(sorted(_CHANGEABLE - {'name'}))} can "
            "change. To train on with other values, start a new run from its weights: fc7 train "
            f"--from {run.name}"
        )
    done = finished_epochs(run)
    if recipe.epochs < done:
        raise CheckpointError(f"{run} has finished {done} epochs, so epochs={recipe.epochs} is too few.")
    reopened = finished and recipe.epochs > info.recipe.epochs
    return ResumedRun(replace(info, recipe=recipe), finished and not reopened, has_checkpoint or reopened, reopened)


def write_resumed(run: Path, resumed: ResumedRun, batches: int) -> None:
    """Write the changes into the run's folder. batches: in an epoch.

    If the process is killed in between, the run is unfinished with its old number of epochs, all of which are done.
    """
    if resumed.reopened:
        _write_checkpoint_of_weights(run, resumed.info, batches)
        (run / MODEL_FILE).replace(run / BEST_FILE)
    if resumed.info != read_info(run):
        write_info(run, resumed.info)


def require_same_data(run: Path, info: RunInfo, root: Path, found: tuple[str, tuple[str, ...]], *, force: bool) -> None:
    """Raise UnusableRunError if the images in `root` are not those of the run. found: their hash and classes.

    force: accept other images, but not other classes.
    """
    data_hash, classes = found
    if data_hash != info.data_hash and not force:
        raise UnusableRunError(
            f"The images in {root} changed since {run} was started (data hash {data_hash[:12]} instead of "
            f"{info.data_hash[:12]}). Restore them, start a new run, or use --force to continue anyway."
        )
    if classes != info.classes:
        raise UnusableRunError(f"The classes in {root} are not those that {run} was started with. Start a new run.")


def remove_leftovers(run: Path) -> None:
    """Remove files that a killed process left: unfinished writes, and the checkpoint of a finished run."""
    for pattern in (".*.safetensors.*", ".tmp*"):  # `atomic_file`, safetensors
        for file in run.glob(pattern):
            file.unlink(missing_ok=True)
    if (run / MODEL_FILE).exists():
        for name in (BEST_FILE, CHECKPOINT_FILE):
            (run / name).unlink(missing_ok=True)


def _write_checkpoint_of_weights(run: Path, info: RunInfo, batches: int) -> None:
    """Write a checkpoint after the last epoch of a finished run, with its final weights."""
    net = AlexNet(info.architecture)
    net.load_state_dict(read_tensors(run / MODEL_FILE, WEIGHTS_PREFIX))
    epochs = epoch_records(run)
    schedule = build_schedule(info.recipe, info.recipe.epochs * batches)
    for record in epochs:
        if "val_error" in record:
            schedule.after_epoch(record["val_error"])
    done = finished_epochs(run)
    position = Position(step=done * batches, epoch=done, schedule=schedule.state(), best=_best(epochs))
    write_checkpoint(run, net, build_optimizer(net, info.recipe), position)


def _best(epochs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the best validation, as `Position.best`; empty if there is none."""
    validated = [record for record in epochs if "val_balanced_error" in record]
    if not validated:
        return {}
    best = min(validated, key=lambda record: (record["val_balanced_error"], record["val_loss"]))
    least = min(record["val_loss"] for record in validated)
    found = {"error": best["val_balanced_error"], "loss": best["val_loss"], "least_loss": least, "waited": 0}
    return found | {"step": best["step"], "epoch": best["epoch"]}


def require_space(folder: Path, needed: int) -> None:
    """Raise CheckpointError if `folder` cannot be created or written, or if its disk has less than `needed` bytes left.

    needed: bytes.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".fc7-") as probe:
            probe.write(b"\0" * 4096)
        left = shutil.disk_usage(existing).free
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder with --home, or make it writable."
        ) from error
    if left < needed:
        raise CheckpointError(
            f"The disk of {folder} has {left / 1e6:,.1f} MB left, and the checkpoints of this net need "
            f"{needed / 1e6:,.1f} MB. Free some disk space, or choose another folder with --home."
        )
