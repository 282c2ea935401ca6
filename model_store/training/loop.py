"""Train a net on class folders: the loop, from the first step to the final weights, and how it goes on after a stop.

    python -m model_store.training.train --data DIR --recipe small --name solar      (fc7 train is the same)

Promises: the same seed, data and recipe on the same machine give the same bits, stopped and resumed or not; a stop, an
epoch's end and nothing else write a checkpoint; a loss that is not finite ends the run with the last good checkpoint
named; a loss that does not move draws a warning; what could not be read is listed in the run's folder.
Does not: choose the best epoch (the weights are the last step's), evaluate at more than one view (evaluate.py does),
start several processes (torchrun does; distributed.py and towers.py say how they share the work).
Source: the paper, sections 4 and 5.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
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
from model_store.durable import write_atomic
from model_store.errors import CheckpointError, DatasetError
from model_store.training import device as machine
from model_store.training.data.augment import Augmenter, epoch_order
from model_store.training.data.dataset import Dataset, ImageSet
from model_store.training.data.loader import batches, open_data
from model_store.training.data.mixup import mix
from model_store.training.distributed.data_parallel import Replicas, Scheme, require_even
from model_store.training.distributed.group import Group
from model_store.training.distributed.towers import Towers, require_towers
from model_store.training.nets.alexnet import Architecture
from model_store.training.optim import build_schedule, set_rate
from model_store.training.plateau_warning import FlatLossWatch
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs import run as runs
from model_store.training.runs.checkpoint import Place, not_finite
from model_store.training.runs.fine_tuning import Parent, child_architecture
from model_store.training.runs.metrics_log import LOG_EVERY, SENT, MetricsLog

DEFAULT_MEMORY_BUDGET: Final = 2 << 30  # bytes of prepared pixels: about 10,900 images
VALIDATION_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use. workers: threads that decode, for each process; None is one a core.

    group: the processes that train together, and this one's device. towers: the two of them have a tower each.
    """

    memory_budget: int = DEFAULT_MEMORY_BUDGET
    workers: int | None = None
    group: Group = field(default_factory=Group)
    towers: bool = False

    def require_fit(self, architecture: Architecture, recipe: Recipe) -> None:
        """Raise RecipeError when these processes cannot share the net's or the recipe's work."""
        if self.towers:
            require_towers(architecture, self.group)
        else:
            require_even(recipe, self.group)

    def scheme(self, info: runs.RunInfo) -> Scheme:
        """Return how the processes share the run's net."""
        return (Towers if self.towers else Replicas)(info.architecture, info.recipe, self.group)


@dataclass(frozen=True, slots=True)
class Result:
    """How `train` or `resume` ended. val_error: top-1 error of the last validation, from 0 to 1; None before."""

    run: Path
    finished: bool  # False: it was stopped, and `resume` goes on
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
    """Train from the first step in a new folder under `home`/runs. When `stop` is set it ends after the step at hand.

    parent: the net whose layers and weights the run begins with, instead of the recipe's (parents.py).
    Raises DatasetError, RecipeError, NonFiniteLossError, CheckpointError (a checkpoint could not be written).
    """
    resources, reporter = resources or Resources(), reporter or Reporter()
    group = resources.group
    architecture = child_architecture(parent, recipe, 1) if parent else recipe.architecture(1)
    resources.require_fit(architecture, recipe)
    with ExitStack() as stack:
        dataset = _open(stack, data, resources, reporter)
        info = runs.RunInfo(
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
            versions=machine.versions() | group.versions() | {"towers": str(resources.towers).lower()},
        )
        stack.enter_context(machine.own_random_numbers(group.device))
        scheme = resources.scheme(info)
        run: Path = group.from_first(_begin_folder(home, info, dataset) if group.first else None)
        trainer = _Trainer(run, info, dataset, scheme, group=group, reporter=reporter, stop=stop)
        return trainer.run_from_start(parent)


def resume(
    run: Path,
    *,
    data: Path | None = None,
    recipe: Recipe | None = None,
    force: bool = False,
    resources: Resources | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Go on from the checkpoint of the run's folder; a finished run is left as it is.

    data: where the images are now, if they moved. recipe: if given, it must be the run's own. force: go on though the
    images changed. Raises CheckpointError when there is no checkpoint, or the recipe or the images are others.
    """
    resources, reporter = resources or Resources(), reporter or Reporter()
    group = resources.group
    # Only the first process needs the run's folder: the others may be on machines that do not have it.
    info, finished, begun = group.from_first(_state(run) if group.first else None)
    resources.require_fit(info.architecture, info.recipe)
    if recipe is not None and recipe != info.recipe:
        mine, theirs = info.recipe.to_dict(), recipe.to_dict()
        changes = ", ".join(f"{key} {mine[key]!r} -> {theirs[key]!r}" for key in mine if mine[key] != theirs[key])
        raise CheckpointError(
            f"{run} was begun with another recipe ({changes}): resume it as it is, or begin a new run"
        )
    if finished:
        reporter.note(f"{run} is finished: there is nothing to resume")
        return Result(run, finished=True, val_error=_last_val_error(run) if group.first else None)
    if not begun:
        raise CheckpointError(f"{run} was stopped before its first checkpoint: begin again without --resume")
    with ExitStack() as stack:
        dataset = _open(stack, data or Path(info.data), resources, reporter)
        if dataset.hash != info.data_hash and not force:
            raise CheckpointError(
                f"the images in {dataset.root} are not those that {run} was begun with (hash {dataset.hash[:12]}, then "
                f"{info.data_hash[:12]}): put them back, begin a new run, or go on all the same with --force"
            )
        if dataset.classes != info.classes:
            raise CheckpointError(
                f"the classes in {dataset.root} are not those that {run} was begun with: begin a new run"
            )
        stack.enter_context(machine.own_random_numbers(resources.group.device))
        scheme = resources.scheme(info)
        trainer = _Trainer(run, info, dataset, scheme, group=resources.group, reporter=reporter, stop=stop)
        return trainer.run_from_checkpoint()


def _state(run: Path) -> tuple[runs.RunInfo, bool, bool]:
    """Return what a run's folder says, whether the run is finished, and whether there is a checkpoint."""
    return runs.read_info(run), (run / runs.MODEL_FILE).exists(), (run / runs.CHECKPOINT_FILE).exists()


def _begin_folder(home: Path, info: runs.RunInfo, dataset: Dataset) -> Path:
    run = runs.new_run_folder(home, info.name)
    runs.write_statistics(run, dataset.statistics)
    skipped = [{"path": str(item.path), "reason": item.reason} for item in dataset.skipped]
    write_atomic(run / runs.SKIPPED_FILE, json.dumps(skipped, indent=2, ensure_ascii=False).encode())
    runs.write_info(run, info)
    return run


def _open(stack: ExitStack, data: Path, resources: Resources, reporter: Reporter) -> Dataset:
    workers = stack.enter_context(ThreadPoolExecutor(resources.workers or usable_cores(), "decode"))
    dataset = open_data(data, resources.memory_budget, workers, reporter)
    resources.group.require_same_data(dataset.hash)
    return dataset


def _last_val_error(run: Path) -> float | None:
    errors = [record["val_error"] for record in runs.read_metrics(run) if "val_error" in record]
    return errors[-1] if errors else None


class _Trainer:
    """One run in one process: the place in the epochs, and the loop."""

    def __init__(
        self,
        run: Path,
        info: runs.RunInfo,
        dataset: Dataset,
        scheme: Scheme,
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
        self._dtype = machine.autocast_dtype(self._recipe.precision, group.device)
        self._watch = FlatLossWatch(dataset.class_counts(), self._recipe)
        self._val_error = _last_val_error(run) if group.first else None

    def run_from_start(self, parent: Parent | None) -> Result:
        kept_last = self._scheme.begin(self._info, parent)
        if parent is not None:
            kept = "fc8 too: the classes are the same" if kept_last else "fc8 is new: the classes differ"
            self._reporter.note(f"the weights are those of {parent.name}; {kept}")
        return self._epochs(Place(0, 0, 0, 0.0, 0, 0.0, self._schedule.state()))

    def run_from_checkpoint(self) -> Result:
        place = self._scheme.restore(self._run)
        self._schedule.restore(place.schedule)
        self._reporter.note(f"going on with {self._run} after step {place.step}, in epoch {place.epoch + 1}")
        return self._epochs(place)

    def _epochs(self, place: Place) -> Result:
        going = True
        with MetricsLog(self._run, place.step) if self._group.first else nullcontext() as log:
            while going and place.epoch < self._recipe.epochs:
                place, wait = self._epoch(place, log)
                if place.batch < self._batches:
                    self._scheme.checkpoint(self._run, place)
                    return Result(self._run, finished=False, val_error=self._val_error)
                record = self._close_epoch(place, wait)
                if "val_error" in record:
                    self._val_error = record["val_error"]
                    going = self._schedule.after_epoch(record["val_error"])
                if log is not None:
                    log.write(record)
                self._reporter.epoch(record)
                place = Place(place.step, place.epoch + 1, 0, 0.0, 0, 0.0, self._schedule.state())
                if going and place.epoch < self._recipe.epochs:
                    self._scheme.checkpoint(self._run, place)
        self._scheme.finish(self._run, place.step)
        return Result(self._run, finished=True, val_error=self._val_error)

    def _epoch(self, place: Place, log: MetricsLog | None) -> tuple[Place, float]:
        """Train the rest of the place's epoch; return the place reached and the seconds spent waiting for data."""
        self._scheme.module.train()
        images, began, wait = len(self._dataset.train), time.perf_counter(), 0.0
        step, batch, loss_sum, wrong = place.step, place.batch, place.loss_sum, place.wrong
        seen = min(batch * self._recipe.batch_size, images)
        already = seen
        pinned = self._group.device.type == "cuda"
        with closing(batches(self._dataset.train, self._positions(place.epoch, batch), pinned=pinned)) as inputs:
            while batch < self._batches and not self._group.any(self._stop.is_set()):
                asked = time.perf_counter()
                pixels, labels = next(inputs)
                wait += time.perf_counter() - asked
                count = min(self._recipe.batch_size, images - batch * self._recipe.batch_size)
                rate = self._schedule.rate(step)
                loss, missed = self._step(pixels, labels, count, rate, (place.epoch, batch))
                step, batch, seen = step + 1, batch + 1, seen + count
                loss_sum, wrong = loss_sum + loss * count, wrong + missed
                if step % LOG_EVERY == 0 and log is not None:
                    record = {"step": step, "epoch": place.epoch + 1, "loss": loss, "error": missed / count}
                    log.write({"kind": "step", **record, "rate": rate})
                warning = self._watch.after_step(loss)
                if warning:
                    self._reporter.warn(warning)
                speed = (seen - already) / (time.perf_counter() - began)
                done, total = place.epoch * images + seen, self._recipe.epochs * images
                self._reporter.step(done, total, loss_sum / seen, wrong / seen, speed)
        seconds = place.seconds + time.perf_counter() - began
        return Place(step, place.epoch, batch, loss_sum, wrong, seconds, self._schedule.state()), wait

    def _positions(self, epoch: int, batch: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of this process's images of the epoch's batches, from `batch` on."""
        order = epoch_order(len(self._dataset.train), self._info.seed, epoch)
        size = self._recipe.batch_size
        for number in range(batch, self._batches):
            whole = order[number * size : (number + 1) * size]
            yield whole[slice(*self._scheme.rows(len(whole)))]

    def _step(
        self, pixels: Tensor, labels: Tensor, count: int, rate: float, place: tuple[int, int]
    ) -> tuple[float, int]:
        """Move the weights once, for a batch of `count` images; return its mean loss and the number of wrong answers.

        pixels, labels: of this process's share. place: (epoch, batch in the epoch).
        """
        set_rate(self._optimiser, rate)
        rows = (self._scheme.rows(count)[0], count)
        noisy = rate >= self._recipe.noise_off_below * self._recipe.highest_rate
        x = self._augmenter.training_batch(pixels, self._info.seed, *place, rows=rows, noisy=noisy)
        labels = labels.to(self._group.device, non_blocking=True)
        targets = labels
        if self._recipe.mixup:
            key = (self._info.seed, *place)
            x, targets = mix(x, labels, len(self._dataset.classes), self._recipe.mixup, key)
            labels = targets.argmax(1)  # of a blend, the class with the larger share
        logits = self._logits(x, rows)
        # This process's share of the mean over the whole batch, so that the gradients of all add up to the mean's.
        smoothing = self._recipe.label_smoothing
        loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) / count
        mean, missed = self._scheme.totals([loss.item(), int((logits.argmax(1) != labels).sum())])
        if not math.isfinite(mean):
            raise not_finite(self._run, place[0] * self._batches + place[1])
        self._optimiser.zero_grad(set_to_none=True)
        self._scheme.backward(loss)
        self._optimiser.step()
        return mean, int(missed)

    @property
    def _optimiser(self) -> torch.optim.Optimizer:
        return self._scheme.optimiser

    def _logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:
        with torch.autocast(self._group.device.type, self._dtype, enabled=self._dtype is not None):
            logits = self._scheme.logits(x, rows)
        return logits.float()

    def _close_epoch(self, place: Place, wait: float) -> dict[str, Any]:
        images = len(self._dataset.train)
        record: dict[str, Any] = {
            "kind": "epoch",
            "epoch": place.epoch + 1,
            "step": place.step,
            "train_loss": place.loss_sum / images,
            "train_error": place.wrong / images,
            "rate": self._schedule.rate(place.step - 1),
            "seconds": round(place.seconds, 3),
            "images_per_second": round(images / place.seconds, 2),
            "wait_share": round(wait / place.seconds, 4),
        }
        sent = self._scheme.sent()
        record |= {"images": images} | {SENT + layer: count for layer, count in sent.items()} if sent else {}
        last = place.epoch + 1 == self._recipe.epochs
        if last or (place.epoch + 1) % self._recipe.validate_every == 0:
            record |= self._validate(self._dataset.val)
            if not math.isfinite(record["val_loss"]):
                raise not_finite(self._run, place.step)
        self._scheme.sent()  # validation's is not an epoch's
        return record

    @torch.no_grad()
    def _validate(self, images: ImageSet) -> dict[str, float]:
        """Return the loss and errors over the central crops. Every image counts once."""
        self._scheme.module.eval()
        first, every = self._scheme.validation_share()
        mine = np.arange(first, len(images), every)
        shares = np.split(mine, range(VALIDATION_BATCH, len(mine), VALIDATION_BATCH)) if len(mine) else []
        loss, wrong, wrong5, counted = 0.0, 0, 0, 0
        with closing(batches(images, shares)) as inputs:
            for pixels, given in inputs:
                logits = self._logits(self._augmenter.centre_batch(pixels), None)
                labels = given.to(self._group.device)
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
                top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                wrong += int((~top[:, 0]).sum())
                wrong5 += int((~top.any(1)).sum())
                counted += len(labels)
        loss, *counts = self._scheme.totals([loss, wrong, wrong5, counted])
        if counts[2] != len(images):
            raise DatasetError(f"{counts[2]:.0f} of {len(images)} validation images were counted")
        wrong, wrong5, counted = (int(value) for value in counts)
        return {"val_loss": loss / counted, "val_error": wrong / counted, "val_top5_error": wrong5 / counted}
