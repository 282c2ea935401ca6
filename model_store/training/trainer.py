"""Trains a run in this process: epochs, steps, validation, and the choice of the best weights.

Guarantees: the same seed, data and recipe on the same machine give the same bits, whether the run was resumed or not. A
checkpoint is written after the first epoch, when the run is stopped, and after other epochs unless that would take
more than a tenth of the time. A loss that is not finite ends the run, and the error names the last good checkpoint. A
loss that does not decrease causes a warning.
Out of scope: opening the data and creating the run's folder (loop.py); how processes share the work (distributed/).
References: the paper, sections 4 and 5; Menon et al. 2021 (logits adjusted by the class frequencies).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_store.classes.figures import FigureCounter, Figures
from model_store.errors import DatasetError
from model_store.training.data.augment import Augmenter, epoch_order
from model_store.training.data.dataset import Dataset, ImageSet
from model_store.training.data.loader import batches
from model_store.training.data.mixup import Share, draw_share, mix
from model_store.training.device import autocast_dtype
from model_store.training.distributed.data_parallel import DataParallel
from model_store.training.distributed.group import Group
from model_store.training.optim import build_schedule, set_rate
from model_store.training.recipe import Recipe
from model_store.training.recipes.plateau_warning import PlateauDetector
from model_store.training.reporting import Reporter
from model_store.training.runs.checkpoint import Position, Validation, non_finite_error, read_validation
from model_store.training.runs.fine_tuning import Parent
from model_store.training.runs.metrics_log import LOG_EVERY, SENT_PREFIX, MetricsLog
from model_store.training.runs.run import RunInfo, finished_epochs

VALIDATION_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Result:
    """The result of `train` or `resume`.

    finished: False if the run was stopped and can be resumed. figures: those of the final weights on the validation
    images; None if the run was stopped, or if an older version of fc7 finished it.
    """

    run: Path
    finished: bool
    figures: Figures | None = None


def finished_result(run: Path, info: RunInfo, group: Group, reporter: Reporter) -> Result:
    """Return the result of a finished run, which the first process reads for all. Raises CheckpointError."""
    validation = read_validation(run, info.classes) if group.first else None
    if validation is not None and validation.epoch < finished_epochs(run):
        reporter.note(f"The final weights are those of epoch {validation.epoch}, which had the best validation.")
    validation = group.broadcast(validation)
    return Result(run, finished=True, figures=None if validation is None else validation.figures)


def batches_per_epoch(recipe: Recipe, images: int) -> int:
    """Return the number of batches in an epoch of a recipe without open values. images: of the training set."""
    return math.ceil(min(recipe.epoch_images or images, images) / recipe.batch_size)


class Trainer:
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
        self._epoch_images = min(self._recipe.epoch_images or len(dataset.train), len(dataset.train))
        self._batches = batches_per_epoch(self._recipe, len(dataset.train))
        self._schedule = build_schedule(self._recipe, self._recipe.epochs * self._batches)
        self._augmenter = Augmenter(self._recipe, dataset.statistics, group.device)
        self._dtype = autocast_dtype(self._recipe.precision, group.device)
        counts = dataset.class_counts()
        self._plateau = PlateauDetector(counts, self._recipe)
        # Added to the logits in training only. The net then learns logits for classes that are equally frequent.
        self._log_shares = torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32))
        self._log_shares = (self._recipe.balance * self._log_shares).to(group.device)
        self._head_steps = 0  # at the start, which train only fc8
        self._checkpoint_due = 0.0  # by `time.monotonic`

    def start(self, parent: Parent | None) -> Result:
        """Train from the initial weights, or from those of `parent`."""
        copied_last = self._scheme.initialise(self._info, parent)
        if parent is not None:
            if not copied_last:
                self._head_steps = round(self._recipe.head_share * self._recipe.epochs * self._batches)
            last = "fc8 too, because the classes are the same" if copied_last else "except fc8, whose classes differ"
            self._reporter.note(f"The initial weights are those of {parent.name} ({last}).")
        return self._train_epochs(Position(schedule=self._schedule.state(), head_steps=self._head_steps))

    def images_per_second(self, parent: Parent | None, steps: int = 8) -> float:
        """Measure the speed of training steps after a first one. The weights are useless afterwards."""
        self._scheme.initialise(self._info, parent)
        self._scheme.module.train()
        seen, started = 0, 0.0
        order = itertools.chain.from_iterable(self._order(epoch, 0) for epoch in itertools.count())
        with closing(batches(self._dataset.train, order)) as inputs:
            for number in range(steps + 1):
                pixels, labels = next(inputs)
                images = self._batch_images(number % self._batches)
                self._train_step(pixels, labels, images, 0.0, divmod(number, self._batches))
                if number:
                    seen += images
                else:
                    started = time.perf_counter()  # the first step also allocates memory
        return seen / (time.perf_counter() - started)

    def resume(self) -> Result:
        """Train from the checkpoint in the run's folder."""
        position = self._scheme.restore(self._run)
        self._schedule.restore(position.schedule)
        self._head_steps = position.head_steps
        self._reporter.note(f"Resuming {self._run} after step {position.step}, in epoch {position.epoch + 1}.")
        return self._train_epochs(position)

    def _train_epochs(self, position: Position) -> Result:
        """Train until the last epoch, or until the schedule or early stopping ends the run."""
        training, validation = True, None
        with MetricsLog(self._run, position.step) if self._group.first else nullcontext() as log:
            while training and position.epoch < self._recipe.epochs:
                position, wait = self._train_epoch(position, log)
                if position.batch < self._batches:
                    self._scheme.checkpoint(self._run, position)
                    return Result(self._run, finished=False)
                last = position.epoch + 1 == self._recipe.epochs
                record, best = self._epoch_record(position, wait), position.best
                if last or (position.epoch + 1) % self._recipe.validate_every == 0:
                    figures, loss, record = self._validated(position, record)
                    validation = Validation(position.epoch + 1, figures)
                    best = self._keep_if_best(position, validation, loss)
                    training = self._schedule.after_epoch(record["val_error"]) and not self._stops_early(best)
                if log is not None:
                    log.write(record)
                self._reporter.epoch(record)
                position = Position(
                    position.step,
                    position.epoch + 1,
                    schedule=self._schedule.state(),
                    best=best,
                    head_steps=self._head_steps,
                )
                if training and position.epoch < self._recipe.epochs:
                    self._checkpoint_if_due(position)
        warning = self._plateau.at_end(position.step)
        if warning:
            self._reporter.warn(warning)
        return self._finished(position, validation)

    def _finished(self, position: Position, validation: Validation | None) -> Result:
        """Write the final weights. validation: of the last epoch; None if this process has not trained it."""
        best = position.best
        if self._recipe.keep_best and best and best["step"] != position.step:
            self._scheme.finish(self._run, position.step, None)
        else:
            validation = validation or Validation(position.epoch, self._validate(self._dataset.val)[0])
            self._scheme.finish(self._run, position.step, validation)
        return finished_result(self._run, self._info, self._group, self._reporter)

    def _checkpoint_if_due(self, position: Position) -> None:
        """Write a checkpoint, unless that would take more than a tenth of the time."""
        started = time.monotonic()
        due = self._group.broadcast(started >= self._checkpoint_due)
        if due:
            self._scheme.checkpoint(self._run, position)
            now = time.monotonic()
            self._checkpoint_due = now + 9 * (now - started)

    def _keep_if_best(self, position: Position, validation: Validation, loss: float) -> dict[str, float]:
        """Keep the weights if no validation had a higher balanced accuracy, or the same and a higher loss."""
        error = 1 - validation.figures.balanced_accuracy
        error, loss = self._group.broadcast((error, loss))  # one decision for all processes
        best = position.best
        if best and (best["error"], best["loss"]) <= (error, loss):
            waited = 0 if loss < best["least_loss"] else best["waited"] + 1
            return best | {"waited": waited, "least_loss": min(loss, best["least_loss"])}
        if self._recipe.keep_best:
            self._scheme.keep(self._run, position.step, validation)
        least = min(loss, best["least_loss"]) if best else loss
        found = {"error": error, "loss": loss, "least_loss": least, "waited": 0}
        return found | {"step": position.step, "epoch": position.epoch + 1}

    def _stops_early(self, best: dict[str, float]) -> bool:
        if not self._recipe.early_stop or best["waited"] < self._recipe.early_stop:
            return False
        self._reporter.note(f"Stopped early: no validation was better than that of epoch {best['epoch']:.0f}.")
        return True

    def _train_epoch(self, position: Position, log: MetricsLog | None) -> tuple[Position, float]:
        """Train the rest of an epoch. Returns the new position, and the seconds spent waiting for data."""
        self._scheme.module.train()
        images, started, wait = self._epoch_images, time.perf_counter(), 0.0
        step, batch, loss_sum, wrong = position.step, position.batch, position.loss_sum, position.wrong
        already_seen = seen = min(batch * self._recipe.batch_size, images)
        pinned = self._group.device.type == "cuda"
        with closing(batches(self._dataset.train, self._order(position.epoch, batch), pinned=pinned)) as inputs:
            while batch < self._batches and not self._group.any(self._stop.is_set()):
                requested = time.perf_counter()
                pixels, labels = next(inputs)
                wait += time.perf_counter() - requested
                count, rate = self._batch_images(batch), self._schedule.rate(step)
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
        return replace(
            position,
            step=step,
            batch=batch,
            loss_sum=loss_sum,
            wrong=wrong,
            seconds=seconds,
            schedule=self._schedule.state(),
        ), wait

    def _batch_images(self, number: int) -> int:
        """Return the number of images in a batch of an epoch."""
        return min(self._recipe.batch_size, self._epoch_images - number * self._recipe.batch_size)

    def _order(self, epoch: int, first_batch: int) -> Iterator[NDArray[np.int64]]:
        """Yield, for each batch of the epoch from `first_batch` on, the positions of the images of `_share`."""
        order = epoch_order(len(self._dataset.train), self._info.seed, epoch)[: self._epoch_images]
        size = self._recipe.batch_size
        for number in range(first_batch, self._batches):
            batch = order[number * size : (number + 1) * size]
            yield batch[self._share(len(batch), (epoch, number)).rows]

    def _share(self, count: int, key: tuple[int, int]) -> Share:
        """Return this process's share of a batch of `count` images. key: (epoch, batch in the epoch)."""
        return draw_share(self._scheme.rows(count), count, self._recipe.mixup, (self._info.seed, *key))

    def _train_step(
        self, pixels: Tensor, labels: Tensor, count: int, rate: float, key: tuple[int, int]
    ) -> tuple[float, int]:
        """Update the weights for a batch of `count` images. Returns its mean loss and the number of wrong answers.

        pixels, labels: of the images of `_share`. key: (epoch, batch in the epoch).
        """
        step = key[0] * self._batches + key[1]
        if self._recipe.frozen_layers or self._head_steps:
            self._scheme.train_only(head=step < self._head_steps, frozen=self._recipe.frozen_layers)
        set_rate(self._scheme.optimizer, rate)
        share = self._share(count, key)
        noisy = rate >= self._recipe.noise_off_below * self._recipe.highest_rate
        x = self._augmenter.training_batch(pixels, self._info.seed, *key, rows=(share.rows, count), noisy=noisy)
        labels = labels.to(self._group.device, non_blocking=True)
        x, targets = mix(x, labels, len(self._dataset.classes), share)
        if self._recipe.mixup:
            labels = targets.argmax(1)  # the class with the larger share of the blend
        logits = self._logits(x, (share.first, count))
        # This process's part of the mean over the whole batch, so that the gradients of all processes add up.
        smoothing = self._recipe.label_smoothing
        adjusted = logits + self._log_shares
        loss = functional.cross_entropy(adjusted, targets, reduction="sum", label_smoothing=smoothing) / count
        mean_loss, wrong = self._scheme.group.sum([loss.item(), int((logits.argmax(1) != labels).sum())])
        if not math.isfinite(mean_loss):
            raise non_finite_error(self._run, step)
        self._scheme.optimizer.zero_grad(set_to_none=True)
        self._scheme.backward(loss)
        self._scheme.optimizer.step()
        return mean_loss, int(wrong)

    def _logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:
        with torch.autocast(self._group.device.type, self._dtype, enabled=self._dtype is not None):
            logits = self._scheme.logits(x, rows)
        return logits.float()

    def _epoch_record(self, position: Position, wait: float) -> dict[str, Any]:
        """Return the line of `metrics.jsonl` for the epoch, without validation."""
        images = self._epoch_images
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
        return record

    def _validated(self, position: Position, record: dict[str, Any]) -> tuple[Figures, float, dict[str, Any]]:
        """Return the figures and the loss of a validation, and the record with them."""
        figures, more = self._validate(self._dataset.val)
        if not math.isfinite(more["val_loss"]):
            raise non_finite_error(self._run, position.step)
        self._scheme.bytes_sent()  # do not count validation in the next epoch
        more["val_balanced_error"] = 1 - figures.balanced_accuracy
        return figures, more["val_loss"], record | more

    @torch.no_grad()
    def _validate(self, images: ImageSet) -> tuple[Figures, dict[str, float]]:
        """Return the figures, and loss and errors, over the central crops. Every image counts once."""
        self._scheme.module.eval()
        group = self._scheme.group
        own = np.arange(group.rank, len(images), group.world)
        order = np.split(own, range(VALIDATION_BATCH, len(own), VALIDATION_BATCH)) if len(own) else []
        loss, wrong, wrong5, counted = 0.0, 0, 0, 0
        counter = FigureCounter(len(self._dataset.classes))
        with closing(batches(images, order)) as inputs:
            for pixels, batch_labels in inputs:
                logits = self._logits(self._augmenter.center_batch(pixels), None)
                labels = batch_labels.to(self._group.device)
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
                correct = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                wrong += int((~correct[:, 0]).sum())
                wrong5 += int((~correct.any(1)).sum())
                counted += len(labels)
                confidence, best = logits.softmax(1).max(1)
                counter.add(batch_labels.numpy(), best.cpu().numpy(), confidence.cpu().numpy())
        loss, *counts = group.sum([loss, wrong, wrong5, counted])
        counter.sum_over(group.sum)
        wrong, wrong5, counted = (int(value) for value in counts)
        if counted != len(images):
            raise DatasetError(f"Only {counted} of {len(images)} validation images were counted.")
        errors = {"val_loss": loss / counted, "val_error": wrong / counted, "val_top5_error": wrong5 / counted}
        return counter.figures(self._dataset.classes), errors
