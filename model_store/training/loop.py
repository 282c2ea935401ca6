"""Start a training run in a new folder, or resume one: data, recipe, net and the run's files.

    python -m model_store.training.train --data DIR --recipe small --name solar      (or: fc7 train ...)

Guarantees: the same seed, data and recipe on the same machine give the same bits, also after a resume. The
recipe in the run's folder has no open values. Files that could not be read are listed in the run's folder.
Out of scope: steps, epochs and validation (trainer.py), evaluating with several views (evaluate.py), starting processes
(torchrun), and how processes share the work (distributed/).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.memory import available
from model_store.training.data.dataset import Dataset
from model_store.training.data.image_file import write_skipped
from model_store.training.data.loader import open_data
from model_store.training.data.split import SplitRule, run_data, write_run_split
from model_store.training.device import environment_versions, preserved_rng
from model_store.training.distributed.data_parallel import DataParallel, require_divisible
from model_store.training.distributed.group import Group
from model_store.training.distributed.towers import TowerParallel, require_towers
from model_store.training.nets.alexnet import AlexNet, Architecture
from model_store.training.recipe import Recipe
from model_store.training.recipes.sizing import advice, describe, sized
from model_store.training.reporting import Reporter
from model_store.training.runs import resuming
from model_store.training.runs import run as run_folder
from model_store.training.runs.fine_tuning import Parent, child_architecture
from model_store.training.runs.memory_plan import checkpoint_bytes, picture_budget
from model_store.training.runs.run import RunInfo
from model_store.training.trainer import Result, Trainer, batches_per_epoch, finished_result

DEFAULT_MEMORY_BUDGET: Final = 2 << 30  # bytes of prepared pixels, enough for about 10,900 images


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a run. workers: decoding threads of each process; None: one per core. limits: of decoding.

    group: the processes that train together. towers: train one tower in each of two processes.
    """

    memory_budget: int = DEFAULT_MEMORY_BUDGET
    workers: int | None = None
    group: Group = field(default_factory=Group)
    towers: bool = False
    limits: DecodeLimits | None = None

    def require_fit(self, architecture: Architecture, recipe: Recipe) -> None:
        """Raise RecipeError if these processes cannot share the net or the batches."""
        if self.towers:
            require_towers(architecture, self.group)
        else:
            require_divisible(recipe, self.group)

    def fitted(self, architecture: Architecture, recipe: Recipe) -> Resources:
        """Return the resources with the budget for images that training leaves. Raises TrainingMemoryError."""
        budget = picture_budget(self.memory_budget, architecture, recipe, self.group.device, available())
        return replace(self, memory_budget=budget)

    def build_scheme(self, info: RunInfo) -> DataParallel:
        """Build the run's net, or this process's tower."""
        if self.towers:
            return TowerParallel(info.architecture, info.recipe, self.group)
        return DataParallel(AlexNet(info.architecture), info.recipe, self.group)

    def open_data(self, stack: ExitStack, data: Path, reporter: Reporter, rule: SplitRule | None = None) -> Dataset:
        """Open the data set, with decoding threads and processes that end with `stack`. Raises DatasetError.

        rule: how images are chosen for validation if there are none.
        """
        workers = stack.enter_context(ThreadPoolExecutor(self.workers or usable_cores(), "decode"))
        decoder = stack.enter_context(Decoder(self.limits, workers=self.workers))
        dataset = open_data(data, self.memory_budget, workers, decoder, reporter, rule=rule)
        self.group.require_same_data(dataset.hash)
        return dataset


def train(
    data: Path,
    recipe: Recipe,
    *,
    home: Path,
    name: str,
    seed: int = 0,
    rule: SplitRule | None = None,
    parent: Parent | None = None,
    minutes: float | None = None,
    resources: Resources | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Train in a new folder in `home`/runs. After `stop` is set, the run ends with a checkpoint after the current step.

    rule: how images are chosen for validation if `data` has none.
    parent: the net to start from. The run then has its layers instead of the recipe's.
    minutes: the time for training, from which the recipe's epochs are chosen. None: they follow from the images.
    Raises DatasetError, RecipeError, NonFiniteLossError, CheckpointError (a checkpoint could not be written).
    """
    resources, reporter = resources or Resources(), reporter or Reporter()
    group = resources.group
    architecture = child_architecture(parent, recipe, 1) if parent else recipe.architecture(1)
    if group.first:
        resuming.require_space(home / "runs", checkpoint_bytes(architecture))
    resources.require_fit(architecture, recipe)
    resources = resources.fitted(architecture, recipe)
    with ExitStack() as stack:
        dataset = resources.open_data(stack, data, reporter, rule)
        images = len(dataset.train)
        info = RunInfo(
            name=name,
            recipe=sized(recipe, images, fine_tuning=parent is not None),
            architecture=replace(architecture, classes=len(dataset.classes)),
            classes=dataset.classes,
            data=str(data.resolve()),
            data_hash=dataset.hash,
            train_images=images,
            val_images=len(dataset.val),
            seed=seed,
            parent=parent.name if parent else None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=environment_versions() | group.versions() | {"towers": str(resources.towers).lower()},
        )
        stack.enter_context(preserved_rng(group.device))
        if minutes is not None:
            info = replace(info, recipe=_timed(recipe, minutes, info, dataset, resources=resources, parent=parent))
        resources.require_fit(info.architecture, info.recipe)
        reporter.note(describe(info.recipe, images))
        if parent is None and (text := advice(info.recipe, images)):
            reporter.note(text)
        scheme = resources.build_scheme(info)
        run: Path = group.broadcast(_create_run(home, info, dataset, stack) if group.first else None)
        return Trainer(run, info, dataset, scheme, group=group, reporter=reporter, stop=stop).start(parent)


def _timed(
    recipe: Recipe, minutes: float, info: RunInfo, dataset: Dataset, *, resources: Resources, parent: Parent | None
) -> Recipe:
    """Measure the speed of a few steps, and return the recipe for the time allowed."""
    group = resources.group
    sized(recipe, info.train_images, minutes=minutes, speed=1)  # raises before the measurement
    trainer = Trainer(Path(), info, dataset, resources.build_scheme(info), group=group, reporter=Reporter(), stop=None)
    speed: float = group.broadcast(trainer.images_per_second(parent))
    return sized(recipe, info.train_images, fine_tuning=parent is not None, minutes=minutes, speed=speed)


def resume(
    run: Path,
    *,
    data: Path | None = None,
    rule: SplitRule | None = None,
    changes: resuming.Changes | None = None,
    force: bool = False,
    find_parent: Callable[[str], Parent] | None = None,
    resources: Resources | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Continue a run from its checkpoint, or from its start if it has none. A finished run can get more epochs.

    data: the folder of the images, if they were moved. rule: how they were divided, if they were. changes: to the
    recipe. force: continue even if the images changed. find_parent: returns the net that the run started from, by its
    name.
    Raises CheckpointError if a change is not possible, if the images differ, or if another process trains the run.
    """
    resources, reporter = resources or Resources(), reporter or Reporter()
    group = resources.group
    with ExitStack() as stack:
        resumed, recorded = None, None
        # Only the first process needs the run's folder. The others may be on machines that do not have it.
        if group.first:
            stack.enter_context(run_folder.locked_run(run))
            resuming.remove_leftovers(run)
            resumed = resuming.read_resumed(run, changes or resuming.Changes())
            recorded = run_data(run, resumed.info)
        resumed, recorded = group.broadcast((resumed, recorded))
        info = resumed.info
        if resumed.finished:
            reporter.note(
                f"{run} is finished, so there is nothing to resume. To train on, give a higher number of epochs: "
                f"--set epochs={2 * info.recipe.epochs}"
            )
            return finished_result(run, info, group, reporter)
        resources.require_fit(info.architecture, info.recipe)
        resources = resources.fitted(info.architecture, info.recipe)
        dataset = resources.open_data(stack, data or recorded, reporter, rule)
        resuming.require_same_data(run, info, dataset.root, (dataset.hash, dataset.classes), force=force)
        stack.enter_context(preserved_rng(group.device))
        if group.first:
            resuming.write_resumed(run, resumed, batches_per_epoch(info.recipe, len(dataset.train)))
        scheme = resources.build_scheme(info)
        trainer = Trainer(run, info, dataset, scheme, group=group, reporter=reporter, stop=stop)
        if resumed.has_checkpoint:
            return trainer.resume()
        reporter.note(f"{run} ended before its first checkpoint, so it starts again.")
        parent = find_parent(info.parent) if find_parent and info.parent and group.first else None
        return trainer.start(group.broadcast(parent))


def _create_run(home: Path, info: RunInfo, dataset: Dataset, stack: ExitStack) -> Path:
    """Create the run's folder, and lock it until `stack` is closed. Raises CheckpointError."""
    try:
        run = run_folder.new_run_folder(home, info.name)
        stack.enter_context(run_folder.locked_run(run))
        run_folder.write_statistics(run, dataset.statistics)
        write_skipped(run, dataset.skipped)
        if dataset.divided is not None:
            write_run_split(run, dataset.divided)
        run_folder.write_info(run, info)
    except OSError as error:
        raise run_folder.unwritable(home / "runs", error) from error
    return run
