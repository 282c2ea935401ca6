"""Data parallel training: the processes of a run share each batch.

    torchrun --nproc-per-node 2 -m model_store.training.train --data DIR --recipe paper --name solar

Guarantees: the result does not depend on the number of processes, except for the order of float32 sums. Gradients are
the mean over the whole batch, dropout, augmentation and mixup are drawn for the whole batch, and every validation image
counts once. All processes have the same weights, bit for bit. The number of processes must divide the batch. Only the
first process writes and prints.
Out of scope: starting processes (torchrun), and splitting a layer over processes (towers.py).
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model_store.errors import RecipeError
from model_store.training.device import rng_states, set_rng_states
from model_store.training.distributed.group import Group
from model_store.training.nets.alexnet import AlexNet, initialise
from model_store.training.optim import build_optimizer
from model_store.training.recipe import Recipe
from model_store.training.runs.checkpoint import (
    Position,
    Validation,
    finish,
    keep_weights,
    restore_checkpoint,
    write_checkpoint,
)
from model_store.training.runs.fine_tuning import Parent, load_parent_weights
from model_store.training.runs.run import RunInfo
from model_store.training.runs.starter import load_starter


class DataParallel:
    """Each process has the whole net and a share of every batch. A single process has all of it."""

    def __init__(self, net: AlexNet, recipe: Recipe, group: Group) -> None:
        """Move the net to the group's device. `require_divisible` checks the batch size."""
        self.group = group  # the processes that share each batch
        self._net: AlexNet = net.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self._net, recipe)
        self.module: nn.Module = self._net  # switched between training and evaluation mode
        self._parallel: DistributedDataParallel | None = None

    def rows(self, count: int) -> tuple[int, int]:
        """Return (first, last + 1) of this process's rows in a batch of `count`. Shares can differ by one row."""
        rank, world = self.group.rank, self.group.world
        return rank * count // world, (rank + 1) * count // world

    def logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:
        """Return the logits of this process's inputs. rows: (first row, rows in the batch) of a training batch."""
        self._net.batch_rows = rows
        # Validation bypasses DistributedDataParallel: processes may have different numbers of validation batches.
        return cast(Tensor, (self._synchronized() if rows else self._net)(x))

    def _synchronized(self) -> nn.Module:
        """Return the net, wrapped so that the processes exchange the gradients of what is trained now."""
        if self.group.world == 1:
            return self._net
        if self._parallel is None:
            # It exchanges the gradients of the parameters that are trained when it is built.
            self._parallel = DistributedDataParallel(
                self._net, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        return self._parallel

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of `loss`, summed over the processes."""
        (loss * self.group.world).backward()  # type: ignore[no-untyped-call]  # DistributedDataParallel averages

    def initialise(self, info: RunInfo, parent: Parent | None) -> bool:
        """Draw the initial weights, or copy the parent's. Returns whether fc8 was copied too."""
        copied_last = initialise_net(self._net, info, parent)
        self.group.broadcast_tensors(self._net.parameters())
        return copied_last

    def restore(self, run: Path) -> Position:
        """Load the run's checkpoint, which the first process reads for all. Raises CheckpointError."""
        return restore_for_all(run, self._net, self.optimizer, self.group)

    def checkpoint(self, run: Path, position: Position) -> None:
        """Write a checkpoint of the whole net. Raises CheckpointError, NonFiniteLossError."""
        if self.group.first:
            write_checkpoint(run, self._net, self.optimizer, position)

    def keep(self, run: Path, step: int, validation: Validation) -> None:
        """Keep the weights of the whole net after `step` as the best. Raises CheckpointError, NonFiniteLossError."""
        if self.group.first:
            keep_weights(run, self._net, step, validation)

    def finish(self, run: Path, step: int, validation: Validation | None) -> None:
        """Write the final weights of the whole net: those after `step`, or without `validation` the best ones kept.

        Raises CheckpointError, NonFiniteLossError.
        """
        if self.group.first:
            finish(run, self._net, step, validation)

    def train_only(self, *, head: bool, frozen: int) -> None:
        """Choose what is trained: only fc8 (`head`), or all layers after the first `frozen` ones that have weights."""
        names = list(self._net.parameter_counts())
        trained = set(names[-1:] if head else names[min(frozen, len(names) - 1) :])
        changed = False
        for name, parameter in self._net.named_parameters():
            needed = name.partition(".")[0] in trained
            changed |= parameter.requires_grad != needed
            parameter.requires_grad_(needed)
            if not needed:
                parameter.grad = None
        if changed and self._parallel is not None:
            self._parallel = None
            gc.collect()  # its hooks would still run in the backward pass

    def bytes_sent(self) -> dict[str, int]:
        """Return the bytes that this process sent for each layer since the last call, if they are counted."""
        return {}


def initialise_net(net: AlexNet, info: RunInfo, parent: Parent | None) -> bool:
    """Draw or copy the initial weights of a run, and seed torch. Returns whether fc8 was copied from the parent."""
    initialise(net, info.recipe.initialisation, torch.Generator().manual_seed(info.seed))
    if info.recipe.starter and info.parent is None:
        load_starter(net)
    copied_last = load_parent_weights(net, parent, info.classes) if parent is not None else False
    torch.manual_seed(info.seed)
    return copied_last


def require_divisible(recipe: Recipe, group: Group) -> None:
    """Raise RecipeError unless the processes can share each batch."""
    if recipe.batch_size % group.world:
        nearest = recipe.batch_size // group.world * group.world or group.world
        raise RecipeError(
            f"batch_size={recipe.batch_size} is not divisible by {group.world} processes. Use --set "
            f"batch_size={nearest}, or another number of processes."
        )


def restore_for_all(run: Path, net: AlexNet, optimizer: torch.optim.Optimizer, group: Group) -> Position:
    """Read the checkpoint in the first process, and send weights, velocities and random state to all processes.

    Other machines do not need the run's folder. Raises CheckpointError in the first process.
    """
    position = restore_checkpoint(run, net, optimizer) if group.first else None
    if group.world == 1:
        return cast(Position, position)
    has_velocity = [bool(optimizer.state.get(weight)) for weight in net.parameters()]
    position, states, has_velocity = group.broadcast((position, rng_states(group.device), has_velocity))
    set_rng_states(states, group.device)
    group.broadcast_tensors(net.parameters())
    for weight, moving in zip(net.parameters(), has_velocity, strict=True):
        if moving:
            velocity = optimizer.state[weight].setdefault("momentum_buffer", torch.empty_like(weight).detach())
            group.broadcast_tensors([velocity])
    return cast(Position, position)
