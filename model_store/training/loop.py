"""The training loop, from the first step to the final weights, and resuming after a stop.

    python -m model_store.training.train --data DIR --recipe small --name solar      (or: fc7 train ...)

Guarantees: the same seed, data and recipe on the same machine give the same bits, whether the run was resumed or not. A
checkpoint is written at the end of each epoch and when the run is stopped. A loss that is not finite ends the run, and
the error names the last good checkpoint. A loss that does not decrease causes a warning. Files that could not be read
are listed in the run's folder.
Out of scope: choosing the best epoch (the final weights are those of the last step), evaluating with several views
(evaluate.py), starting processes (torchrun), and how processes share the work (distributed/).
References: the paper, sections 4 and 5.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.memory import available
from model_store.training.data.augment import Augmenter, epoch_order, mix
from model_store.training.data.dataset import Dataset, ImageSet
from model_store.training.data.image_file import write_skipped
from model_store.training.data.loader import batches, open_data
from model_store.training.device import autocast_dtype, environment_versions, preserved_rng
from model_store.training.distributed.data_parallel import DataParallel, require_divisible
from model_store.training.distributed.group import Group
from model_store.training.distributed.towers import TowerParallel, require_towers
from model_store.training.nets.alexnet import AlexNet, Architecture
from model_store.training.optim import build_schedule, set_rate
from model_store.training.plateau_warning import PlateauDetector
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs import resuming
from model_store.training.runs import run as run_folder
from model_store.training.runs.checkpoint import Position, non_finite_error
from model_store.training.runs.fine_tuning import Parent, child_architecture
from model_store.training.runs.memory_plan import checkpoint_bytes, picture_budget, training_bytes
from model_store.training.runs.metrics_log import LOG_EVERY, SENT_PREFIX, MetricsLog
from model_store.training.runs.run import RunInfo, read_metrics

DEFAULT_MEMORY_BUDGET: Final = 2 << 30  # bytes of prepared pixels, enough for about 10,900 images
VALIDATION_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a run. workers: decoding threads of each process; None: one per core.

    group: the processes that train together. towers: train one tower in each of two processes.
    """

    memory_budget: int = DEFAULT_MEMORY_BUDGET
    workers: int | None = None
    group: Group = field(default_factory=Group)
    towers: bool = False

    def require_fit(self, architecture: Architecture, recipe: Recipe) -> None:
        """Raise RecipeError if these processes cannot share the net or the batches."""
        if self.towers:
            require_towers(architecture, self.group)
        else:
            require_divisible(recipe, self.group)

    def fitted(self, architecture: Architecture, recipe: Recipe) -> Resources:
        """Return the resources with the budget for images that training leaves. Raises TrainingMemoryError."""
        needed = training_bytes(architecture, recipe, self.group.device)
        return replace(self, memory_budget=picture_budget(self.memory_budget, needed, available()))

    def build_scheme(self, info: RunInfo) -> DataParallel:
        """Build the run's net, or this process's tower."""
        if self.towers:
            return TowerParallel(info.architecture, info.recipe, self.group)
        return DataParallel(AlexNet(info.architecture), info.recipe, self.group)

    def open_data(self, stack: ExitStack, data: Path, reporter: Reporter) -> Dataset:
        """Open the data set, with decoding threads and processes that end with `stack`. Raises DatasetError."""
        workers = stack.enter_context(ThreadPoolExecutor(self.workers or usable_cores(), "decode"))
        decoder = stack.enter_context(Decoder(workers=self.workers))
        dataset = open_data(data, self.memory_budget, workers, decoder, reporter)
        self.group.require_same_data(dataset.hash)
        return dataset


@dataclass(frozen=True, slots=True)
class Result:
    """The result of `train` or `resume`. val_error: top-1 error of the last validation (0 to 1), None if there is none.

    finished: False if the run was stopped and can be resumed.
    """

    run: Path
    finished: bool
    val_error: float | None


def train(
    data: Path,
    recipe: Recipe,
    *,
    home: Path,
    name: str,
    seed: int = 0,
    parent: Parent | None = None,
    resources: Resources | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Train in a new folder in `home`/runs. After `stop` is set, the run ends with a checkpoint after the current step.

    parent: the net to start from. The run then has its layers instead of the recipe's.
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
        dataset = resources.open_data(stack, data, reporter)
        info = RunInfo(
            name=name,
            recipe=recipe,
            architecture=replace(architecture, classes=len(dataset.classes)),
            classes=dataset.classes,
            data=str(data.resolve()),
            data_hash=dataset.hash,
            train_images=len(dataset.train),
            val_images=len(dataset.val),
            seed=seed,
            parent=parent.name if parent else None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=environment_versions() | group.versions() | {"towers": str(resources.towers).lower()},
        )
        stack.enter_context(preserved_rng(group.device))
        scheme = resources.build_scheme(info)
        run: Path = group.broadcast(_create_run(home, info, dataset, stack) if group.first else None)
        return _Trainer(run, info, dataset, scheme, group=group, reporter=reporter, stop=stop).start(parent)


def resume(
    run: Path,
    *,
    data: Path | None = None,
    changes: resuming.Changes | None = None,
    force: bool = False,
    find_parent: Callable[[str], Parent] | None = None,
    resources: Resources | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Continue a run from its checkpoint, or from its start if it has none. A finished run can get more epochs.

    data: the folder of the images, if they were moved. changes: to the recipe. force: continue even if the images
    changed. find_parent: returns the net that the run started from, by its name.
    Raises CheckpointError if a change is not possible, if the images differ, or if another process trains the run.
    """
    resources, reporter = resources or Resources(), reporter or Reporter()
    group = resources.group
    with ExitStack() as stack:
        resumed = None
        # Only the first process needs the run's folder. The others may be on machines that do not have it.
        if group.first:
            stack.enter_context(run_folder.locked_run(run))
            resuming.remove_leftovers(run)
            resumed = resuming.read_resumed(run, changes or resuming.Changes())
        resumed = group.broadcast(resumed)
        info = resumed.info
        if resumed.finished:
            reporter.note(
                f"{run} is finished, so there is nothing to resume. To train on, give a higher number of epochs: "
                f"--set epochs={2 * info.recipe.epochs}"
            )
            return Result(run, finished=True, val_error=_last_val_error(run) if group.first else None)
        resources.require_fit(info.architecture, info.recipe)
        resources = resources.fitted(info.architecture, info.recipe)
        dataset = resources.open_data(stack, data or Path(info.data), reporter)
        resuming.require_same_data(run, info, dataset.root, (dataset.hash, dataset.classes), force=force)
        stack.enter_context(preserved_rng(group.device))
        if group.first:
            resuming.write_resumed(run, resumed, math.ceil(len(dataset.train) / info.recipe.batch_size))
        scheme = resources.build_scheme(info)
        trainer = _Trainer(run, info, dataset, scheme, group=group, reporter=reporter, stop=stop)
        if resumed.has_checkpoint:
            return trainer.resume()
        reporter.note(f"{run} ended before its first checkpoint, so it starts again.")
        return trainer.start(find_parent(info.parent) if find_parent and info.parent else None)


def _create_run(home: Path, info: RunInfo, dataset: Dataset, stack: ExitStack) -> Path:
    """Create the run's folder, and lock it until `stack` is closed. Raises CheckpointError."""
    try:
        run = run_folder.new_run_folder(home, info.name)
        stack.enter_context(run_folder.locked_run(run))
        run_folder.write_statistics(run, dataset.statistics)
        write_skipped(run, dataset.skipped)
        run_folder.write_info(run, info)
    except OSError as error:
        raise run_folder.unwritable(home / "runs", error) from error
    return run


def _last_val_error(run: Path) -> float | None:
    return next((record["val_error"] for record in reversed(read_metrics(run)) if "val_error" in record), None)


class _Trainer:
    """Trains a run in this process: epochs, steps, validation."""

    def __init__(
        self,
        run: Path,
        info: RunInfo,
        dataset: Dataset,
        scheme: DataParallel,
        *,
        group: Group,
        reporter: Reporter,
        stop: threading.Event | None,
    ) -> None:
        self._run, self._info, self._dataset, self._reporter = run, info, dataset, reporter
        self._stop = stop or threading.Event()
        self._recipe, self._scheme, self._group = info.recipe, scheme, group
        self._batches = math.ceil(len(dataset.train) / self._recipe.batch_size)
        self._schedule = build_schedule(self._recipe, self._recipe.epochs * self._batches)
        self._augmenter = Augmenter(self._recipe, dataset.statistics, group.device)
        self._dtype = autocast_dtype(self._recipe.precision, group.device)
        self._plateau = PlateauDetector(dataset.class_counts(), self._recipe)
        self._val_error = _last_val_error(run) if group.first else None

    def start(self, parent: Parent | None) -> Result:
        copied_last = self._scheme.initialise(self._info, parent)
        if parent is not None:
            last = "fc8 too, because the classes are the same" if copied_last else "except fc8, whose classes differ"
            self._reporter.note(f"The initial weights are those of {parent.name} ({last}).")
        return self._train_epochs(Position(schedule=self._schedule.state()))

    def resume(self) -> Result:
        position = self._scheme.restore(self._run)
        self._schedule.restore(position.schedule)
        self._reporter.note(f"Resuming {self._run} after step {position.step}, in epoch {position.epoch + 1}.")
        return self._train_epochs(position)

    def _train_epochs(self, position: Position) -> Result:
        training = True
        with MetricsLog(self._run, position.step) if self._group.first else nullcontext() as log:
            while training and position.epoch < self._recipe.epochs:
                position, wait = self._train_epoch(position, log)
                if position.batch < self._batches:
                    self._scheme.checkpoint(self._run, position)
                    return Result(self._run, finished=False, val_error=self._val_error)
                record = self._finish_epoch(position, wait)
                if "val_error" in record:
                    self._val_error = record["val_error"]
                    training = self._schedule.after_epoch(record["val_error"])
                if log is not None:
                    log.write(record)
                self._reporter.epoch(record)
                position = Position(position.step, position.epoch + 1, schedule=self._schedule.state())
                if training and position.epoch < self._recipe.epochs:
                    self._scheme.checkpoint(self._run, position)
        self._scheme.finish(self._run, position.step)
        return Result(self._run, finished=True, val_error=self._val_error)

    def _train_epoch(self, position: Position, log: MetricsLog | None) -> tuple[Position, float]:
        """Train the rest of an epoch. Returns the new position, and the seconds spent waiting for data."""
        self._scheme.module.train()
        images, started, wait = len(self._dataset.train), time.perf_counter(), 0.0
        step, batch, loss_sum, wrong = position.step, position.batch, position.loss_sum, position.wrong
        already_seen = seen = min(batch * self._recipe.batch_size, images)
        pinned = self._group.device.type == "cuda"
        with closing(batches(self._dataset.train, self._order(position.epoch, batch), pinned=pinned)) as inputs:
            while batch < self._batches and not self._group.any(self._stop.is_set()):
                requested = time.perf_counter()
                pixels, labels = next(inputs)
                wait += time.perf_counter() - requested
                count = min(self._recipe.batch_size, images - batch * self._recipe.batch_size)
                rate = self._schedule.rate(step)
                loss, wrong_answers = self._train_step(pixels, labels, count, rate, (position.epoch, batch))
                step, batch, seen = step + 1, batch + 1, seen + count
                loss_sum, wrong = loss_sum + loss * count, wrong + wrong_answers
                if step % LOG_EVERY == 0 and log is not None:
                    record = {"step": step, "epoch": position.epoch + 1, "loss": loss, "error": wrong_answers / count}
                    log.write({"kind": "step", **record, "rate": rate})
                warning = self._plateau.after_step(loss)
                if warning:
                    self._reporter.warn(warning)
                speed = (seen - already_seen) / (time.perf_counter() - started)
                done, total = position.epoch * images + seen, self._recipe.epochs * images
                self._reporter.step(done, total, loss_sum / seen, wrong / seen, speed)
        seconds = position.seconds + time.perf_counter() - started
        return Position(step, position.epoch, batch, loss_sum, wrong, seconds, self._schedule.state()), wait

    def _order(self, epoch: int, first_batch: int) -> Iterator[NDArray[np.int64]]:
        """Yield, for each batch of the epoch from `first_batch` on, the positions of this process's images."""
        order = epoch_order(len(self._dataset.train), self._info.seed, epoch)
        size = self._recipe.batch_size
        for number in range(first_batch, self._batches):
            batch = order[number * size : (number + 1) * size]
            yield batch[slice(*self._scheme.rows(len(batch)))]

    def _train_step(
        self, pixels: Tensor, labels: Tensor, count: int, rate: float, key: tuple[int, int]
    ) -> tuple[float, int]:
        """Update the weights for a batch of `count` images. Returns its mean loss and the number of wrong answers.

        pixels, labels: this process's share. key: (epoch, batch in the epoch).
        """
        set_rate(self._scheme.optimizer, rate)
        rows = (self._scheme.rows(count)[0], count)
        noisy = rate >= self._recipe.noise_off_below * self._recipe.highest_rate
        x = self._augmenter.training_batch(pixels, self._info.seed, *key, rows=rows, noisy=noisy)
        labels = labels.to(self._group.device, non_blocking=True)
        targets = labels
        if self._recipe.mixup:
            x, targets = mix(x, labels, len(self._dataset.classes), self._recipe.mixup, (self._info.seed, *key))
            labels = targets.argmax(1)  # the class with the larger share of the blend
        logits = self._logits(x, rows)
        # This process's part of the mean over the whole batch, so that the gradients of all processes add up.
        smoothing = self._recipe.label_smoothing
        loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) / count
        mean_loss, wrong = self._scheme.group.sum([loss.item(), int((logits.argmax(1) != labels).sum())])
        if not math.isfinite(mean_loss):
            raise non_finite_error(self._run, key[0] * self._batches + key[1])
        self._scheme.optimizer.zero_grad(set_to_none=True)
        self._scheme.backward(loss)
        self._scheme.optimizer.step()
        return mean_loss, int(wrong)

    def _logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:
        with torch.autocast(self._group.device.type, self._dtype, enabled=self._dtype is not None):
            logits = self._scheme.logits(x, rows)
        return logits.float()

    def _finish_epoch(self, position: Position, wait: float) -> dict[str, Any]:
        """Validate if it is time. Returns the line of `metrics.jsonl` for the epoch."""
        images = len(self._dataset.train)
        record: dict[str, Any] = {
            "kind": "epoch",
            "epoch": position.epoch + 1,
            "step": position.step,
            "train_loss": position.loss_sum / images,
            "train_error": position.wrong / images,
            "rate": self._schedule.rate(position.step - 1),
            "seconds": round(position.seconds, 3),
            "images_per_second": round(images / position.seconds, 2),
            "wait_share": round(wait / position.seconds, 4),
        }
        if sent := self._scheme.bytes_sent():
            record |= {"images": images} | {SENT_PREFIX + layer: count for layer, count in sent.items()}
        last = position.epoch + 1 == self._recipe.epochs
        if last or (position.epoch + 1) % self._recipe.validate_every == 0:
            record |= self._validate(self._dataset.val)
            if not math.isfinite(record["val_loss"]):
                raise non_finite_error(self._run, position.step)
        self._scheme.bytes_sent()  # do not count validation in the next epoch
        return record

    @torch.no_grad()
    def _validate(self, images: ImageSet) -> dict[str, float]:
        """Return the loss and errors over the central crops. Every image counts once."""
        self._scheme.module.eval()
        group = self._scheme.group
        own = np.arange(group.rank, len(images), group.world)
        order = np.split(own, range(VALIDATION_BATCH, len(own), VALIDATION_BATCH)) if len(own) else []
        loss, wrong, wrong5, counted = 0.0, 0, 0, 0
        with closing(batches(images, order)) as inputs:
            for pixels, batch_labels in inputs:
                logits = self._logits(self._augmenter.center_batch(pixels), None)
                labels = batch_labels.to(self._group.device)
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
                correct = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                wrong += int((~correct[:, 0]).sum())
                wrong5 += int((~correct.any(1)).sum())
                counted += len(labels)
        loss, *counts = group.sum([loss, wrong, wrong5, counted])
        wrong, wrong5, counted = (int(value) for value in counts)
        if counted != len(images):
            raise DatasetError(f"Only {counted} of {len(images)} validation images were counted.")
        return {"val_loss": loss / counted, "val_error": wrong / counted, "val_top5_error": wrong5 / counted}
