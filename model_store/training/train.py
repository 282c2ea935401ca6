"""Train a net on class folders: the loop, from the first step to the final weights, and how it goes on after a stop.

    python -m model_store.training.train --data DIR --recipe small --name solar      (fc7 train is the same)

Promises: the same seed, data and recipe on the same machine give the same bits, stopped and resumed or not; a stop, an
epoch's end and nothing else write a checkpoint; a loss that is not finite ends the run with the last good checkpoint
named; a loss that does not move draws a warning; what could not be read is listed in the run's folder.
Does not: choose the best epoch (the weights are the last step's), evaluate at more than one view (evaluate.py does).
Source: the paper, sections 4 and 5.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_store.durable import write_atomic
from model_store.errors import CheckpointError, DatasetError
from model_store.training import machine, runs
from model_store.training.augment import Augmenter, epoch_order
from model_store.training.checkpoint import Place, finish, not_finite, restore_checkpoint, write_checkpoint
from model_store.training.dataset import Dataset, ImageSet, open_dataset
from model_store.training.mixing import mix
from model_store.training.network import AlexNet, initialise
from model_store.training.optim import build_optimiser, build_schedule, set_rate
from model_store.training.parents import Parent, begin_from, child_architecture
from model_store.training.progress import LOG_EVERY, MetricsLog, Reporter
from model_store.training.recipe import Recipe

DEFAULT_MEMORY_BUDGET: Final = 2 << 30  # bytes of prepared pixels: about 10,900 images
VALIDATION_BATCH: Final = 64
_READ_AHEAD: Final = 3  # batches
_LISTED: Final = 5  # examples in a message


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use of the machine. workers: threads that decode; None is one a core."""

    memory_budget: int = DEFAULT_MEMORY_BUDGET
    workers: int | None = None


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
    with ExitStack() as stack:
        dataset = _open(stack, data, resources, reporter)
        classes = len(dataset.classes)
        architecture = child_architecture(parent, recipe, classes) if parent else recipe.architecture(classes)
        run = runs.new_run_folder(home, name)
        info = runs.RunInfo(
            name=name,
            recipe=recipe,
            architecture=architecture,
            classes=dataset.classes,
            data=str(data.resolve()),
            data_hash=dataset.hash,
            train_images=len(dataset.train),
            val_images=len(dataset.val),
            seed=seed,
            parent=parent.name if parent else None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=machine.versions(),
        )
        runs.write_statistics(run, dataset.statistics)
        skipped = [{"path": str(item.path), "reason": item.reason} for item in dataset.skipped]
        write_atomic(run / runs.SKIPPED_FILE, json.dumps(skipped, indent=2, ensure_ascii=False).encode())
        runs.write_info(run, info)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        return _Trainer(run, info, dataset, reporter, stop or threading.Event()).run_from_start(parent)


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
    info = runs.read_info(run)
    if recipe is not None and recipe != info.recipe:
        mine, theirs = info.recipe.to_dict(), recipe.to_dict()
        changes = ", ".join(f"{key} {mine[key]!r} -> {theirs[key]!r}" for key in mine if mine[key] != theirs[key])
        raise CheckpointError(
            f"{run} was begun with another recipe ({changes}): resume it as it is, or begin a new run"
        )
    if (run / runs.MODEL_FILE).exists():
        reporter.note(f"{run} is finished: there is nothing to resume")
        return Result(run, finished=True, val_error=_last_val_error(run))
    if not (run / runs.CHECKPOINT_FILE).exists():
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
        stack.enter_context(torch.random.fork_rng(devices=[]))
        return _Trainer(run, info, dataset, reporter, stop or threading.Event()).run_from_checkpoint()


def _open(stack: ExitStack, data: Path, resources: Resources, reporter: Reporter) -> Dataset:
    workers = stack.enter_context(ThreadPoolExecutor(resources.workers or os.cpu_count() or 1, "decode"))
    dataset = open_dataset(data, memory_budget=resources.memory_budget, workers=workers, progress=reporter.reading)
    where = "in memory" if dataset.train.in_memory else "decoded as they are needed: over the memory budget"
    reporter.note(
        f"{len(dataset.train)} training, {len(dataset.val)} validation images, {len(dataset.classes)} classes, {where}"
    )
    if dataset.skipped:
        listed = "; ".join(f"{item.path}: {item.reason}" for item in dataset.skipped[:_LISTED])
        more = f"; and {len(dataset.skipped) - _LISTED} more" if len(dataset.skipped) > _LISTED else ""
        reporter.warn(f"{len(dataset.skipped)} files were skipped ({runs.SKIPPED_FILE} lists all): {listed}{more}")
    if dataset.duplicates:
        listed = "; ".join(f"{pair.val} is {pair.train}" for pair in dataset.duplicates[:_LISTED])
        reporter.warn(
            f"{len(dataset.duplicates)} images are in val and, byte for byte, in train: the validation error will be "
            f"too good. {listed}"
        )
    return dataset


def _last_val_error(run: Path) -> float | None:
    errors = [record["val_error"] for record in runs.read_metrics(run) if "val_error" in record]
    return errors[-1] if errors else None


class _Trainer:
    """One run: the net, its optimiser, and the place in the epochs."""

    def __init__(
        self, run: Path, info: runs.RunInfo, dataset: Dataset, reporter: Reporter, stop: threading.Event
    ) -> None:
        self._run, self._info, self._dataset, self._reporter, self._stop = run, info, dataset, reporter, stop
        self._recipe = info.recipe
        self._net: AlexNet = AlexNet(info.architecture).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimiser = build_optimiser(self._net, self._recipe)
        self._batches = math.ceil(len(dataset.train) / self._recipe.batch_size)
        self._schedule = build_schedule(self._recipe, self._recipe.epochs * self._batches)
        self._augmenter = Augmenter(self._recipe, dataset.statistics)
        self._dtype = machine.autocast_dtype(self._recipe.precision)
        self._watch = FlatLossWatch(dataset.class_counts(), self._recipe)
        self._val_error = _last_val_error(run)

    def run_from_start(self, parent: Parent | None) -> Result:
        initialise(self._net, self._recipe.initialisation, torch.Generator().manual_seed(self._info.seed))
        if parent is not None:
            with_last = begin_from(self._net, parent, self._info.classes)
            kept = "fc8 too: the classes are the same" if with_last else "fc8 is new: the classes differ"
            self._reporter.note(f"the weights are those of {parent.name}; {kept}")
        torch.manual_seed(self._info.seed)
        return self._epochs(Place(0, 0, 0, 0.0, 0, 0.0, self._schedule.state()))

    def run_from_checkpoint(self) -> Result:
        place = restore_checkpoint(self._run, self._net, self._optimiser)
        self._schedule.restore(place.schedule)
        self._reporter.note(f"going on with {self._run} after step {place.step}, in epoch {place.epoch + 1}")
        return self._epochs(place)

    def _epochs(self, place: Place) -> Result:
        going = True
        with MetricsLog(self._run, place.step) as log:
            while going and place.epoch < self._recipe.epochs:
                place, wait = self._epoch(place, log)
                if place.batch < self._batches:
                    write_checkpoint(self._run, self._net, self._optimiser, place)
                    return Result(self._run, finished=False, val_error=self._val_error)
                record = self._close_epoch(place, wait)
                if "val_error" in record:
                    self._val_error = record["val_error"]
                    going = self._schedule.after_epoch(record["val_error"])
                log.write(record)
                self._reporter.epoch(record)
                place = Place(place.step, place.epoch + 1, 0, 0.0, 0, 0.0, self._schedule.state())
                if going and place.epoch < self._recipe.epochs:
                    write_checkpoint(self._run, self._net, self._optimiser, place)
        finish(self._run, self._net, place.step)
        return Result(self._run, finished=True, val_error=self._val_error)

    def _epoch(self, place: Place, log: MetricsLog) -> tuple[Place, float]:
        """Train the rest of the place's epoch; return the place reached and the seconds spent waiting for data."""
        self._net.train()
        images, began, wait = len(self._dataset.train), time.perf_counter(), 0.0
        step, batch, loss_sum, wrong = place.step, place.batch, place.loss_sum, place.wrong
        seen = min(batch * self._recipe.batch_size, images)
        already = seen
        with ThreadPoolExecutor(1, "augment") as ahead:
            inputs = self._inputs(ahead, place.epoch, batch)
            while batch < self._batches and not self._stop.is_set():
                asked = time.perf_counter()
                x, targets = next(inputs)
                wait += time.perf_counter() - asked
                rate = self._schedule.rate(step)
                loss, missed = self._step(x, targets, rate, step)
                step, batch, seen = step + 1, batch + 1, seen + len(x)
                loss_sum, wrong = loss_sum + loss * len(x), wrong + missed
                if step % LOG_EVERY == 0:
                    error = missed / len(x)
                    record = {"step": step, "epoch": place.epoch + 1, "loss": loss, "error": error, "rate": rate}
                    log.write({"kind": "step", **record})
                warning = self._watch.after_step(loss)
                if warning:
                    self._reporter.warn(warning)
                speed = (seen - already) / (time.perf_counter() - began)
                done, total = place.epoch * images + seen, self._recipe.epochs * images
                self._reporter.step(done, total, loss_sum / seen, wrong / seen, speed)
        seconds = place.seconds + time.perf_counter() - began
        return Place(step, place.epoch, batch, loss_sum, wrong, seconds, self._schedule.state()), wait

    def _inputs(self, ahead: ThreadPoolExecutor, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets) of the epoch's batches from `batch` on, a few of them made ahead in another thread.

        targets: labels, int64 [n], or with mixup the classes' shares, float32 [n, classes].
        """
        order = epoch_order(len(self._dataset.train), self._info.seed, epoch)
        size, train = self._recipe.batch_size, self._dataset.train

        def make(number: int) -> tuple[Tensor, Tensor]:
            positions = order[number * size : (number + 1) * size]
            x = self._augmenter.training_batch(train.pixels(positions), self._info.seed, epoch, number)
            labels = torch.from_numpy(train.labels[positions])
            if self._recipe.mixup:
                key = (self._info.seed, epoch, number)
                return mix(x, labels, len(self._dataset.classes), self._recipe.mixup, key)
            return x, labels

        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        for number in range(batch, self._batches):
            waiting.append(ahead.submit(make, number))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _step(self, x: Tensor, targets: Tensor, rate: float, step: int) -> tuple[float, int]:
        """Move the weights once; return the batch's mean loss and the number of wrong answers."""
        set_rate(self._optimiser, rate)
        logits = self._logits(x)
        loss = functional.cross_entropy(logits, targets, label_smoothing=self._recipe.label_smoothing)
        if not math.isfinite(loss.item()):
            raise not_finite(self._run, step)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        labels = targets if targets.ndim == 1 else targets.argmax(1)  # of a blend, the class with the larger share
        return loss.item(), int((logits.argmax(1) != labels).sum())

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self._dtype, enabled=self._dtype is not None):
            logits: Tensor = self._net(x)
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
        last = place.epoch + 1 == self._recipe.epochs
        if last or (place.epoch + 1) % self._recipe.validate_every == 0:
            record |= self._validate(self._dataset.val)
            if not math.isfinite(record["val_loss"]):
                raise not_finite(self._run, place.step)
        return record

    @torch.no_grad()
    def _validate(self, images: ImageSet) -> dict[str, float]:
        """Return the loss and errors over the central crops. Every image counts once."""
        self._net.eval()
        loss, wrong, wrong5, counted = 0.0, 0, 0, 0
        for first in range(0, len(images), VALIDATION_BATCH):
            positions = np.arange(first, min(first + VALIDATION_BATCH, len(images)))
            logits = self._logits(self._augmenter.centre_batch(images.pixels(positions)))
            labels = torch.from_numpy(images.labels[positions])
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            wrong += int((~top[:, 0]).sum())
            wrong5 += int((~top.any(1)).sum())
            counted += len(labels)
        if counted != len(images):
            raise DatasetError(f"{counted} of {len(images)} validation images were counted")
        return {"val_loss": loss / counted, "val_error": wrong / counted, "val_top5_error": wrong5 / counted}


class FlatLossWatch:
    """Notices a net that does not begin to learn: after `flat_loss_steps` steps its loss is still that of a guess.

    A guess is ln(classes), or the entropy of the classes' frequencies, which is all that dead layers can learn.
    """

    def __init__(self, class_counts: np.typing.NDArray[np.int64], recipe: Recipe) -> None:
        shares = class_counts / class_counts.sum()
        self._classes = len(class_counts)
        shares = (1 - recipe.label_smoothing) * shares + recipe.label_smoothing / len(shares)
        self._guess = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
        self._recipe = recipe
        self._losses: deque[float] = deque(maxlen=max(1, recipe.flat_loss_steps // 2))
        self._steps = 0

    def after_step(self, loss: float) -> str | None:
        """Take a step's loss; return the warning, once, when it is due."""
        self._steps += 1
        self._losses.append(loss)
        if self._steps != self._recipe.flat_loss_steps or self._classes < 2:
            return None
        mean = sum(self._losses) / len(self._losses)
        if mean < 0.97 * self._guess:
            return None
        recipe = self._recipe
        if recipe.initialisation != "he":
            cause = "the paper's initial weights hardly leave this plateau on little data"
            mend = "--recipe small, or --set initialisation=he"
        elif recipe.learning_rate < 1e-3:
            cause, mend = "the learning rate is low", f"--set learning_rate={recipe.learning_rate * 10:g}"
        else:
            cause = "the learning rate is too high for these images, or folders and pictures do not belong together"
            mend = f"--set learning_rate={recipe.learning_rate / 10:g}"
        return (
            f"after {self._steps} steps the loss is still {mean:.3f}, as of a guess (ln({self._classes}) = "
            f"{math.log(self._classes):.3f}; by the classes' frequencies {self._guess:.3f}). Likely cause: {cause}. "
            f"Try {mend}"
        )


if __name__ == "__main__":
    from model_store.training.command import main

    sys.exit(main())
