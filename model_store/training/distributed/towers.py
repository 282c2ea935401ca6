"""The parallel scheme of the paper: each of two processes has one tower. They exchange data only for some layers.

    torchrun --nproc-per-node 2 -m model_store.training.train --towers --data DIR --recipe original --name solar

Guarantees: the two processes together compute the same as a single process: outputs, gradients, steps, dropout and
checkpoints, which contain the whole net. Only the order of float32 sums differs. Sent bytes are counted by layer.
Out of scope: normalization over both towers (the formula of the text), which would require an exchange at norm1 and
norm2.
References: the paper, sections 3.2 and 3.5, figure 2.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model_store.errors import RecipeError
from model_store.training.distributed.data_parallel import DataParallel, initialise_net, restore_for_all
from model_store.training.distributed.group import Group
from model_store.training.nets.alexnet import (
    DROPOUT_RATE,
    AlexNet,
    Architecture,
    Conv,
    Hidden,
    Layer,
    Norm,
    build_module,
)
from model_store.training.optim import build_optimizer
from model_store.training.recipe import Recipe
from model_store.training.runs.checkpoint import Position, Validation, finish, keep_weights, write_checkpoint
from model_store.training.runs.fine_tuning import Parent
from model_store.training.runs.run import RunInfo

TOWERS: Final = 2


class Exchange:
    """The exchange of tensors between the two towers. Counts the sent bytes by layer."""

    def __init__(self, tower: int) -> None:
        self.tower = tower
        self._sent: defaultdict[str, int] = defaultdict(int)

    def swap(self, mine: Tensor, layer: str) -> Tensor:
        """Send `mine` to the other tower and return the tensor that it sends, which has the same shape."""
        # Maps are sent in their memory layout, channels last.
        flat = mine.permute(0, 2, 3, 1).contiguous() if mine.dim() == 4 else mine.contiguous()
        other = torch.empty_like(flat)
        peer = 1 - self.tower
        operations = [dist.P2POp(dist.isend, flat, peer), dist.P2POp(dist.irecv, other, peer)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        self._sent[layer] += flat.numel() * flat.element_size()
        return other.permute(0, 3, 1, 2) if mine.dim() == 4 else other

    def concatenate(self, mine: Tensor, other: Tensor, dim: int) -> Tensor:
        """Return the parts of both towers in their order."""
        return torch.cat([mine, other] if self.tower == 0 else [other, mine], dim)

    def pop_counts(self) -> dict[str, int]:
        """Return the bytes sent for each layer, and reset the counts."""
        sent = dict(self._sent)
        self._sent.clear()
        return sent


class _Gather(torch.autograd.Function):
    """Gathers the maps of both towers. The backward pass sums both towers' gradients for this tower's maps."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, exchange: Exchange, layer: str) -> Tensor:
        ctx.exchange, ctx.layer = exchange, layer
        return exchange.concatenate(mine, exchange.swap(mine, layer), 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        halves = gradients[0].chunk(TOWERS, 1)
        tower = ctx.exchange.tower
        return halves[tower] + ctx.exchange.swap(halves[1 - tower], ctx.layer), None, None


class _Add(torch.autograd.Function):
    """Adds the logits of both towers. Both compute the same loss from them, so the backward pass sends nothing."""

    @staticmethod
    def forward(_ctx: Any, mine: Tensor, exchange: Exchange, layer: str) -> Tensor:
        return mine + exchange.swap(mine, layer)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class TowerNet(AlexNet):
    """One tower of a net: half of every layer, and the weights of fc8 for half of fc7."""

    def __init__(self, architecture: Architecture, exchange: Exchange) -> None:
        """Build the tower. `require_towers` checks the architecture."""
        super().__init__(replace(architecture, layers=tuple(_half(layer) for layer in architecture.layers)))
        self._exchange = exchange
        self._reads_both = set()
        for position, layer in enumerate(architecture.layers):
            if isinstance(layer, Hidden) or (isinstance(layer, Conv) and position and layer.towers == 1):
                inputs = self.get_parameter(f"{layer.name}.weight").shape[1] * TOWERS
                self.add_module(layer.name, build_module(_half(layer), inputs))
                self._reads_both.add(layer.name)

    @torch.no_grad()
    def load_part(self, whole: dict[str, Tensor]) -> None:
        """Load this tower's part of the weights of the whole net."""
        for name, weight in self.named_parameters():
            weight.copy_(self.part(name, whole[name]))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return this tower's part of a parameter of the whole net, or of a tensor of the same shape."""
        if name == "fc8.bias":
            return whole
        return whole.chunk(TOWERS, 1 if name == "fc8.weight" else 0)[self._exchange.tower]

    def gather(self, name: str, mine: Tensor) -> Tensor:
        """Return the whole parameter, of which `mine` is this tower's part. Both towers must call this."""
        if name == "fc8.bias":
            return mine.detach()
        other = self._exchange.swap(mine.detach(), "whole net")
        return self._exchange.concatenate(mine.detach(), other, 1 if name == "fc8.weight" else 0)

    def _layer_input(self, layer: str, x: Tensor) -> Tensor:
        if layer not in self._reads_both:
            return x
        return cast(Tensor, _Gather.apply(x, self._exchange, layer))  # type: ignore[no-untyped-call]

    def _classify(self, x: Tensor) -> Tensor:
        own = nn.functional.linear(x, self.fc8.weight)
        logits: Tensor = _Add.apply(own, self._exchange, "fc8")  # type: ignore[no-untyped-call]
        return logits + self.fc8.bias

    def _mask(self, x: Tensor) -> Tensor:
        # Drawn for the neurons of both towers, as in a single process.
        both = x.new_empty((len(x), x.shape[1] * TOWERS)).bernoulli_(1 - DROPOUT_RATE)
        return both.chunk(TOWERS, 1)[self._exchange.tower]


def require_towers(architecture: Architecture, group: Group) -> None:
    """Raise RecipeError unless there are two processes and the net can be split into two towers."""
    if group.world != TOWERS:
        raise RecipeError(
            f"--towers requires two processes, but there are {group.world}. Use: torchrun --nproc-per-node 2 -m "
            "model_store.training.train --towers ..."
        )
    for layer in architecture.layers:
        if isinstance(layer, Norm) and layer.towers != TOWERS:
            raise RecipeError(
                f"{layer.name} normalizes over the maps of both towers, which --towers does not support. Use --recipe "
                "original, or --set normalisation=towers."
            )
        count = layer.kernels if isinstance(layer, Conv) else layer.neurons if isinstance(layer, Hidden) else 0
        if count % TOWERS:
            raise RecipeError(f"{layer.name} has {count} maps, which cannot be split into two towers.")
    if not any(isinstance(layer, Conv) and layer.towers == TOWERS for layer in architecture.layers):
        raise RecipeError("--towers requires a net with two towers, but this net has one.")


def _half(layer: Layer) -> Layer:
    match layer:
        case Conv():
            return replace(layer, kernels=layer.kernels // TOWERS, towers=1)
        case Norm():
            return replace(layer, towers=1)
        case Hidden():
            return replace(layer, neurons=layer.neurons // TOWERS)
    return layer


class TowerParallel(DataParallel):
    """Two processes with one tower each. Both process all images, so each is a data parallel group of one."""

    def __init__(self, architecture: Architecture, recipe: Recipe, group: Group) -> None:
        """Build this process's tower. `require_towers` checks the architecture."""
        self._architecture, self._recipe, self._towers = architecture, recipe, group
        self._exchange = Exchange(group.rank)
        self.tower = TowerNet(architecture, self._exchange)
        super().__init__(self.tower, recipe, Group(device=group.device))

    def initialise(self, info: RunInfo, parent: Parent | None) -> bool:
        """Initialize the whole net, and load this tower's part. Returns whether fc8 was copied from the parent."""
        net, _ = self._whole_net()
        copied_last = initialise_net(net, info, parent)
        self.tower.load_part(net.state_dict())
        return copied_last

    def restore(self, run: Path) -> Position:
        """Load this tower's part of the run's checkpoint, which the first process reads for both."""
        net, optimizer = self._whole_net()
        position = restore_for_all(run, net, optimizer, self._towers)
        self.tower.load_part(net.state_dict())
        for (name, whole), weight in zip(net.named_parameters(), self.tower.parameters(), strict=True):
            if optimizer.state.get(whole):
                part = self.tower.part(name, optimizer.state[whole]["momentum_buffer"])
                self.optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(part).detach()
        return position

    def checkpoint(self, run: Path, position: Position) -> None:
        """Gather the whole net, and write a checkpoint in the first process."""
        net, optimizer = self._gather()
        if self._towers.first:
            write_checkpoint(run, net, optimizer, position)

    def keep(self, run: Path, step: int, validation: Validation) -> None:
        """Gather the whole net, and keep its weights in the first process."""
        net, _ = self._gather()
        if self._towers.first:
            keep_weights(run, net, step, validation)

    def finish(self, run: Path, step: int, validation: Validation | None) -> None:
        """Gather the whole net, and write the final weights in the first process."""
        net, _ = self._gather()
        if self._towers.first:
            finish(run, net, step, validation)

    def bytes_sent(self) -> dict[str, int]:
        """Return the bytes that this tower sent for each layer since the last call, in the order of the layers."""
        counts = self._exchange.pop_counts()
        return {name: counts[name] for name, _ in self.tower.named_children() if name in counts}

    def _whole_net(self) -> tuple[AlexNet, torch.optim.Optimizer]:
        """Return a new net without a split, and its optimizer."""
        with torch.random.fork_rng(devices=[]):  # building this net must not change the random numbers of dropout
            net = AlexNet(self._architecture)
        net = net.to(self._towers.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net, build_optimizer(net, self._recipe)

    @torch.no_grad()
    def _gather(self) -> tuple[AlexNet, torch.optim.Optimizer]:
        """Return the whole net with the weights of both towers, and its optimizer with their velocities."""
        net, optimizer = self._whole_net()
        parts = dict(self.tower.named_parameters())
        for name, weight in net.named_parameters():
            weight.copy_(self.tower.gather(name, parts[name]))
            velocity = self.optimizer.state.get(parts[name], {}).get("momentum_buffer")
            if velocity is not None:
                optimizer.state[weight]["momentum_buffer"] = self.tower.gather(name, velocity)
        return net, optimizer
