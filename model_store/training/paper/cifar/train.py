"""Train one CIFAR-10 net and save its error after every epoch in one file, from which training resumes.

Guarantees: the update rule is the original's: the velocity includes the learning rate, biases learn at twice the rate,
and gradients are averaged over a batch. Order, crops and mirrors of an epoch depend only on the seed and the epoch, so
the same plan gives the same weights on the same machine, resumed or not. A kill loses at most the current epoch.
Out of scope: choosing a learning rate; stopping by the test error.
References: the paper, section 5, for the update rule; layer-params-*.cfg of cuda-convnet for the constants, and its
methodology for 24x24 crops and mirrors in training and ten views in the test.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from model_store.durable import write_atomic
from model_store.errors import CheckpointError
from model_store.training.optim import PaperSGD, set_rate
from model_store.training.paper.cifar.data import CifarData, Images
from model_store.training.paper.cifar.nets import DECAYS, IMAGE_SIZE, CifarNet, NetName, Neuron, initialize

BATCH: Final = 128
MOMENTUM: Final = 0.9
BIAS_FACTOR: Final = 2.0
SAMPLE: Final = 10_000  # training images on which the training error is measured after each epoch
_FORMAT: Final = 1
_TEST_BATCH: Final = 250
_REMOVE: Final = "Remove the file to train the curve again."

Precision = Literal["float32", "bfloat16"]
Views = Literal["center", "ten"]
Progress = Callable[[int], None]  # number of images trained on since the last call


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that determines a curve except its length."""

    net: NetName
    rate: float
    data: str  # CifarData.hash
    neuron: Neuron = "relu"
    norms: bool = False
    decay: bool = False  # use the weight decay of the tables
    size: int = IMAGE_SIZE  # side of the crops; 32 is the whole image without mirroring
    drops: tuple[int, ...] = ()  # the rate is divided by 10 after each of these epochs
    measure: Literal["train", "test"] = "train"
    seed: int = 0
    precision: Precision = "float32"

    def file_name(self) -> str:
        """Return a descriptive file name that is unique to this plan."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        norms = "-lrn" if self.norms else ""
        return f"{self.net}{norms}-{self.neuron}-rate{self.rate:g}-seed{self.seed}-{digest[:8]}.safetensors"


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch. Errors are shares from 0 to 1. `loss` and `running_error` are means over the epoch during training.

    `error` is measured at the end of the epoch, on center crops: over a fixed sample of the training set or over the
    test set, according to the plan's `measure`.
    """

    number: int
    loss: float
    running_error: float
    error: float
    seconds: float  # of training, without measuring the error


@dataclass(frozen=True, slots=True)
class Curve:
    """A plan and its epochs so far. `diverged`: the loss became NaN or infinite in the next epoch."""

    plan: Plan
    epochs: tuple[Epoch, ...] = ()
    diverged: bool = False


def epochs_to(errors: list[float], threshold: float, start: float) -> tuple[int, float] | None:
    """Return after how many epochs the error is at most `threshold`: in whole epochs, and linearly interpolated.

    errors: after epochs 1, 2, ... start: before the first epoch. Returns None if the threshold is not reached.
    """
    previous = start
    for number, error in enumerate(errors, start=1):
        if error <= threshold:
            share = 1.0 if previous <= threshold else (previous - threshold) / (previous - error)
            return number, number - 1 + share
        previous = error
    return None


class Trainer:
    """Trains the net of a plan. It resumes from the plan's file in `folder` if there is one.

    Raises CheckpointError if the file cannot be read or belongs to another plan.
    """

    def __init__(self, plan: Plan, data: CifarData, folder: Path) -> None:
        self.curve = Curve(plan)
        self.path = folder / plan.file_name()
        self._data = data
        self._mean = mean_image(data.train, plan.size)
        self.net = CifarNet(plan.net, norms=plan.norms, neuron=plan.neuron, classes=len(data.classes), size=plan.size)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        initialize(self.net, _generator(plan.seed, 0))
        self._optimizer = _optimizer(self.net, plan)
        if self.path.exists():
            self._restore()

    def train_to(self, epochs: int, *, threshold: float | None = None, progress: Progress = lambda _: None) -> Curve:
        """Train up to `epochs` epochs, until the error is at most `threshold` or training diverges. Save each epoch."""
        while len(self.curve.epochs) < epochs and not self.curve.diverged:
            if threshold is not None and any(epoch.error <= threshold for epoch in self.curve.epochs):
                break
            epoch = self._epoch(len(self.curve.epochs) + 1, progress)
            if epoch is None:
                self.curve = replace(self.curve, diverged=True)
            else:
                self.curve = replace(self.curve, epochs=(*self.curve.epochs, epoch))
            self._save()
        return self.curve

    @torch.inference_mode()
    def error(self, images: Images, views: Views = "center") -> float:
        """Return the share of wrong images. "ten" averages the corners, the center and their mirrors."""
        self.net.eval()
        wrong, classes = 0, self.net.fc10.out_features
        for first in range(0, len(images), _TEST_BATCH):
            pixels = torch.from_numpy(images.pixels[first : first + _TEST_BATCH])
            labels = torch.from_numpy(images.labels[first : first + _TEST_BATCH])
            views_of = torch.stack(crops(pixels, self.curve.plan.size, views)).flatten(0, 1)
            probabilities = self._logits(_input(views_of, self._mean)).softmax(1).view(-1, len(labels), classes).mean(0)
            wrong += int((probabilities.argmax(1) != labels).sum())
        return wrong / len(images)

    def _epoch(self, number: int, progress: Progress) -> Epoch | None:
        plan, train = self.curve.plan, self._data.train
        generator = _generator(plan.seed, number)
        set_rate(self._optimizer, plan.rate / 10 ** sum(number > drop for drop in plan.drops))
        pixels, labels = torch.from_numpy(train.pixels), torch.from_numpy(train.labels)
        order = torch.randperm(len(train), generator=generator)
        self.net.train()
        total, wrong, started = 0.0, 0, time.perf_counter()
        for indices in torch.split(order, BATCH):
            x = _input(_training_crops(pixels[indices], plan.size, generator), self._mean)
            y = labels[indices]
            logits = self._logits(x)
            loss = functional.cross_entropy(logits, y)
            value = loss.item()
            if not math.isfinite(value):
                return None
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += value * len(y)
            wrong += int((logits.detach().argmax(1) != y).sum())
            progress(len(y))
        seconds = time.perf_counter() - started
        measured = sample(train) if plan.measure == "train" else self._data.test
        return Epoch(number, total / len(train), wrong / len(train), self.error(measured), seconds)

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.curve.plan.precision == "bfloat16"):
            logits: Tensor = self.net(x)
        return logits.float()

    def _save(self) -> None:
        tensors = {f"net.{name}": value.detach().contiguous() for name, value in self.net.named_parameters()}
        for name, value in self.net.named_parameters():
            velocity = self._optimizer.state[value].get("momentum_buffer", torch.zeros_like(value))
            tensors[f"velocity.{name}"] = velocity.contiguous()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"curve": json.dumps({"format": _FORMAT, **asdict(self.curve)})}
        write_atomic(self.path, save(tensors, metadata=metadata))

    @torch.no_grad()
    def _restore(self) -> None:
        plan = json.loads(json.dumps(asdict(self.curve.plan)))
        try:
            with safe_open(self.path, framework="pt") as tensors:
                values: dict[str, Any] = json.loads(tensors.metadata()["curve"])
                if values.pop("format") != _FORMAT or values["plan"] != plan:
                    raise CheckpointError(f"{self.path} has the curve of another plan. {_REMOVE}")
                epochs = tuple(Epoch(**epoch) for epoch in values["epochs"])
                self.curve = replace(self.curve, epochs=epochs, diverged=values["diverged"])
                for name, value in self.net.named_parameters():
                    value.copy_(tensors.get_tensor(f"net.{name}"))
                    velocity = torch.empty_like(value).copy_(tensors.get_tensor(f"velocity.{name}"))
                    self._optimizer.state[value]["momentum_buffer"] = velocity
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged: {error!r}. {_REMOVE}") from error


def sample(images: Images) -> Images:
    """Return the images on which the training error is measured: always the same `SAMPLE` images, or all if fewer."""
    if len(images) <= SAMPLE:
        return images
    chosen = np.sort(np.random.default_rng(0).choice(len(images), SAMPLE, replace=False))
    return Images(images.pixels[chosen], images.labels[chosen])


def mean_image(images: Images, size: int) -> Tensor:
    """Return the center of the mean image, float32 [size, size, 3]. The original subtracts it from every crop."""
    edge = (IMAGE_SIZE - size) // 2
    mean: NDArray[np.float64] = images.pixels.mean(axis=0, dtype=np.float64)
    return torch.from_numpy(mean[edge : edge + size, edge : edge + size].astype(np.float32))


def crops(pixels: Tensor, size: int, views: Views) -> list[Tensor]:
    """Return the views of images [n, 32, 32, 3]: the center, or four corners, the center and their mirrors."""
    edge = IMAGE_SIZE - size
    offsets = [(edge // 2, edge // 2)]
    if views == "ten":
        offsets = [(0, 0), (0, edge), (edge, 0), (edge, edge), *offsets]
    plain = [pixels[:, top : top + size, left : left + size] for top, left in offsets]
    return plain + ([crop.flip(2) for crop in plain] if views == "ten" else [])


def _training_crops(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return a random crop of each image [n, 32, 32, 3], half of them mirrored: [n, size, size, 3]."""
    if size == IMAGE_SIZE:
        return pixels
    count = len(pixels)
    offsets = torch.randint(0, IMAGE_SIZE - size + 1, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(size)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return pixels[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _input(pixels: Tensor, mean: Tensor) -> Tensor:
    """Convert pixels [n, size, size, 3] to the nets' input: float32 [n, 3, size, size], mean subtracted."""
    return pixels.float().sub_(mean).permute(0, 3, 1, 2)


def _optimizer(net: CifarNet, plan: Plan) -> PaperSGD:
    decays = DECAYS[plan.net] if plan.decay else {}
    groups = [
        {
            "params": [value],
            "factor": BIAS_FACTOR if name.endswith(".bias") else 1.0,
            "weight_decay": decays.get(name, 0.0),
        }
        for name, value in net.named_parameters()
    ]
    return PaperSGD(groups, {"lr": plan.rate, "momentum": MOMENTUM, "weight_decay": 0.0})


def _generator(seed: int, epoch: int) -> torch.Generator:
    """Return the random generator of an epoch. Epoch 0 draws the weights."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
