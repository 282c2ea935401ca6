"""The processes of one run: who is there, what they tell each other, and how they share the batches.

    torchrun --nproc-per-node 2 -m model_store.training.train --data DIR --recipe paper --name solar

Promises: a batch of the recipe is one batch however many processes share it: gradients are the mean over all of its
images, dropout and augmentation are drawn for the whole of it, and every validation image counts once; a number of
processes that does not divide the batch is refused; the first process alone writes and prints.
Does not: start processes (torchrun does), or share one image's work (towers.py does).
Bits: all processes hold the same weights bit for bit; against one process they differ by the order of float32 sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model_store.errors import RecipeError
from model_store.training import device as machine
from model_store.training.distributed.group import Group
from model_store.training.nets.alexnet import AlexNet, Architecture, initialise
from model_store.training.optim import build_optimiser
from model_store.training.recipe import Recipe
from model_store.training.runs.checkpoint import Place, finish, restore_checkpoint, write_checkpoint
from model_store.training.runs.fine_tuning import Parent, begin_from
from model_store.training.runs.run import RunInfo


class Scheme(Protocol):
    """How the processes of a run train one net together."""

    @property
    def module(self) -> nn.Module:
        """What is put into training and evaluation mode."""
        ...

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """What moves this process's weights."""
        ...

    def rows(self, count: int) -> tuple[int, int]:
        """Return (first, last + 1) of the rows of a batch of `count` that this process takes."""
        ...

    def logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:
        """Return the logits of this process's inputs. rows: (first row, rows in all) of a training batch."""
        ...

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return figures of this process's images summed over all images."""
        ...

    def validation_share(self) -> tuple[int, int]:
        """Return (first, step): which validation images this process takes."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Leave gradients of the sum over the processes of `loss`."""
        ...

    def begin(self, info: RunInfo, parent: Parent | None) -> bool:
        """Draw the first weights, or take the parent's; return whether its fc8 came with them."""
        ...

    def restore(self, run: Path) -> Place:
        """Take the run's checkpoint. Raises CheckpointError."""
        ...

    def checkpoint(self, run: Path, place: Place) -> None:
        """Replace the run's checkpoint by the whole net's. Raises CheckpointError."""
        ...

    def finish(self, run: Path, step: int) -> None:
        """Write the whole net's weights after the last `step`. Raises CheckpointError, NonFiniteLossError."""
        ...

    def sent(self) -> dict[str, int]:
        """Return the bytes that this process sent for each layer since the last call, where they are counted."""
        ...


class Replicas:
    """Data parallel: each process has the whole net and its share of every batch. With one process, all of it."""

    def __init__(self, architecture: Architecture, recipe: Recipe, group: Group) -> None:
        """Build the net; `require_even` says which batches can be shared."""
        self._group = group
        self._net: AlexNet = AlexNet(architecture).to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = build_optimiser(self._net, recipe)
        self.module: nn.Module = self._net
        if group.world > 1:
            self.module = DistributedDataParallel(self._net, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def rows(self, count: int) -> tuple[int, int]:
        """Return this process's rows; those of an epoch's last batch may be one fewer than another's."""
        rank, world = self._group.rank, self._group.world
        return rank * count // world, (rank + 1) * count // world

    def logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:
        """Return the logits of this process's inputs."""
        self._net.rows = rows
        # Validation needs no gradients, and the processes' shares of it may differ in their number of batches.
        return cast(Tensor, (self.module if rows else self._net)(x))

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes."""
        return self._group.totals(values)

    def validation_share(self) -> tuple[int, int]:
        """Return every `world`-th image."""
        return self._group.rank, self._group.world

    def backward(self, loss: Tensor) -> None:
        """Leave the same gradients in all processes."""
        (loss * self._group.world).backward()  # type: ignore[no-untyped-call]  # DistributedDataParallel averages

    def begin(self, info: RunInfo, parent: Parent | None) -> bool:
        """Draw the first weights, or take the parent's; return whether its fc8 came with them."""
        kept_last = begin_net(self._net, info, parent)
        self._group.copy_from_first(self._net.parameters())
        return kept_last

    def restore(self, run: Path) -> Place:
        """Take the run's checkpoint, which the first process reads for all."""
        return restore_for_all(run, self._net, self.optimiser, self._group)

    def checkpoint(self, run: Path, place: Place) -> None:
        """Replace the run's checkpoint."""
        if self._group.first:
            write_checkpoint(run, self._net, self.optimiser, place)

    def finish(self, run: Path, step: int) -> None:
        """Write the final weights."""
        if self._group.first:
            finish(run, self._net, step)

    def sent(self) -> dict[str, int]:
        """Return nothing: the gradients' way is the back end's."""
        return {}


def begin_net(net: AlexNet, info: RunInfo, parent: Parent | None) -> bool:
    """Give a net the run's first weights, and torch its random numbers; return whether fc8 is the parent's."""
    initialise(net, info.recipe.initialisation, torch.Generator().manual_seed(info.seed))
    kept_last = begin_from(net, parent, info.classes) if parent is not None else False
    torch.manual_seed(info.seed)
    return kept_last


def require_even(recipe: Recipe, group: Group) -> None:
    """Raise RecipeError unless the number of processes divides the batch, and nothing blends images of them all."""
    if group.world > 1 and recipe.mixup:
        raise RecipeError(
            "mixup blends any two images of a batch, and several processes have a part of it each: --set mixup=0, or "
            "one process"
        )
    if recipe.batch_size % group.world:
        near = recipe.batch_size // group.world * group.world or group.world
        raise RecipeError(
            f"batch_size={recipe.batch_size} is not divided by {group.world} processes: take --set batch_size={near}, "
            "or another number of processes"
        )


def restore_for_all(run: Path, net: AlexNet, optimiser: torch.optim.Optimizer, group: Group) -> Place:
    """Let the first process read the checkpoint, and give all the same weights, velocities and random state.

    The run's folder need not be on the other machines. Raises CheckpointError in the first process.
    """
    place = restore_checkpoint(run, net, optimiser) if group.first else None
    if group.world == 1:
        return cast(Place, place)
    moving = [bool(optimiser.state.get(weight)) for weight in net.parameters()]
    place, random, moving = group.from_first((place, machine.random_states(group.device), moving))
    machine.set_random_states(random, group.device)
    group.copy_from_first(net.parameters())
    for weight, has in zip(net.parameters(), moving, strict=True):
        if has:
            velocity = optimiser.state[weight].setdefault("momentum_buffer", torch.empty_like(weight).detach())
            group.copy_from_first([velocity])
    return cast(Place, place)
