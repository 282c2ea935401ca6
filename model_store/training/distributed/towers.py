"""The paper's own parallel scheme: each of two processes has one tower, and they talk only where a layer sees both.

    torchrun --nproc-per-node 2 -m model_store.training.train --towers --data DIR --recipe original --name solar

Promises: together the two are the net of one process, up to the order of float32 sums: the same outputs, gradients,
steps, dropout and checkpoints (those hold the whole net); the bytes that each sends are counted by layer.
Does not: run with a normalisation over both towers (the text's formula), which would have to talk at norm1 and norm2.
Source: the paper, sections 3.2 and 3.5, figure 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model_store.errors import RecipeError
from model_store.training.distributed.data_parallel import begin_net, restore_for_all
from model_store.training.distributed.group import Group
from model_store.training.nets.alexnet import DROPOUT_RATE, AlexNet, Architecture, Conv, Hidden, Layer, Norm
from model_store.training.optim import build_optimiser
from model_store.training.recipe import Recipe
from model_store.training.runs.checkpoint import Place, finish, write_checkpoint
from model_store.training.runs.fine_tuning import Parent
from model_store.training.runs.run import RunInfo

TOWERS: Final = 2


class Exchange:
    """What the two towers send each other, counted in bytes by layer."""

    def __init__(self, tower: int) -> None:
        self.tower = tower
        self._sent: defaultdict[str, int] = defaultdict(int)

    def swap(self, mine: Tensor, layer: str) -> Tensor:
        """Send `mine` to the other tower and return what it sends, of the same shape."""
        # Maps travel as they lie in memory, channels last.
        flat = mine.permute(0, 2, 3, 1).contiguous() if mine.dim() == 4 else mine.contiguous()
        other = torch.empty_like(flat)
        peer = 1 - self.tower
        ways = [dist.P2POp(dist.isend, flat, peer), dist.P2POp(dist.irecv, other, peer)]
        for way in dist.batch_isend_irecv(ways):
            way.wait()
        self._sent[layer] += flat.numel() * flat.element_size()
        return other.permute(0, 3, 1, 2) if mine.dim() == 4 else other

    def ordered(self, mine: Tensor, other: Tensor, dim: int) -> Tensor:
        """Return both towers' parts, the first one's first."""
        return torch.cat([mine, other] if self.tower == 0 else [other, mine], dim)

    def taken(self) -> dict[str, int]:
        """Return the bytes sent for each layer since the last call."""
        sent = dict(self._sent)
        self._sent.clear()
        return sent


class _Gather(torch.autograd.Function):
    """Both towers' maps from one's own; backwards, the gradients that both have for one's own."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, exchange: Exchange, layer: str) -> Tensor:
        ctx.exchange, ctx.layer = exchange, layer
        return exchange.ordered(mine, exchange.swap(mine, layer), 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        halves = gradients[0].chunk(TOWERS, 1)
        tower = ctx.exchange.tower
        return halves[tower] + ctx.exchange.swap(halves[1 - tower], ctx.layer), None, None


class _Add(torch.autograd.Function):
    """The sum of both towers' shares of the logits. Both compute the same loss of it, so its gradient needs no talk."""

    @staticmethod
    def forward(_ctx: Any, mine: Tensor, exchange: Exchange, layer: str) -> Tensor:
        return mine + exchange.swap(mine, layer)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class TowerNet(AlexNet):
    """One tower of the net of an `Architecture`: half of every layer, and fc8's weights for half of fc7."""

    def __init__(self, architecture: Architecture, exchange: Exchange) -> None:
        """Build the tower. `require_towers` says which nets can be built."""
        super().__init__(replace(architecture, layers=tuple(_half(layer) for layer in architecture.layers)))
        self._exchange = exchange
        self._sees_both = set()
        for position, layer in enumerate(architecture.layers):
            module = self.get_submodule(layer.name)
            if isinstance(layer, Conv) and position and layer.towers == 1:
                convolution = cast(nn.Conv2d, module)
                below = convolution.in_channels * TOWERS
                wider: nn.Module = nn.Conv2d(below, convolution.out_channels, layer.size, layer.stride, layer.padding)
            elif isinstance(layer, Hidden):
                linear = cast(nn.Linear, module)
                wider = nn.Linear(linear.in_features * TOWERS, linear.out_features)
            else:
                continue
            self.add_module(layer.name, wider)
            self._sees_both.add(layer.name)

    @torch.no_grad()
    def take(self, whole: dict[str, Tensor]) -> None:
        """Take this tower's part of the whole net's weights."""
        for name, weight in self.named_parameters():
            weight.copy_(self.part(name, whole[name]))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return this tower's part of a parameter of the whole net, or of anything of its shape."""
        if name == "fc8.bias":
            return whole
        return whole.chunk(TOWERS, 1 if name == "fc8.weight" else 0)[self._exchange.tower]

    def whole(self, name: str, mine: Tensor) -> Tensor:
        """Return the whole net's parameter, of which `mine` is this tower's part. Both towers must ask for it."""
        if name == "fc8.bias":
            return mine.detach()
        other = self._exchange.swap(mine.detach(), "whole net")
        return self._exchange.ordered(mine.detach(), other, 1 if name == "fc8.weight" else 0)

    def _seen_by(self, layer: str, x: Tensor) -> Tensor:
        if layer not in self._sees_both:
            return x
        return cast(Tensor, _Gather.apply(x, self._exchange, layer))  # type: ignore[no-untyped-call]

    def _classify(self, x: Tensor) -> Tensor:
        share = nn.functional.linear(x, self.fc8.weight)
        logits: Tensor = _Add.apply(share, self._exchange, "fc8")  # type: ignore[no-untyped-call]
        return logits + self.fc8.bias

    def _mask(self, x: Tensor) -> Tensor:
        # Drawn for both towers' neurons, as one process does.
        both = x.new_empty((len(x), x.shape[1] * TOWERS)).bernoulli_(1 - DROPOUT_RATE)
        return both.chunk(TOWERS, 1)[self._exchange.tower]


def require_towers(architecture: Architecture, group: Group) -> None:
    """Raise RecipeError unless there are two processes, and the net falls into two towers that talk where a layer sees
    both, and only there.
    """
    if group.world != TOWERS:
        raise RecipeError(
            f"--towers needs two processes, and there are {group.world}: torchrun --nproc-per-node 2 -m "
            "model_store.training.train --towers ..."
        )
    for layer in architecture.layers:
        if isinstance(layer, Norm) and layer.towers != TOWERS:
            raise RecipeError(
                f"{layer.name} normalises over the maps of both towers, which would have to talk there: train --towers "
                "with --recipe original, or --set normalisation=towers"
            )
        count = layer.kernels if isinstance(layer, Conv) else layer.neurons if isinstance(layer, Hidden) else 0
        if count % TOWERS:
            raise RecipeError(f"{layer.name} has {count} maps, which do not fall into two towers")
    if not any(isinstance(layer, Conv) and layer.towers == TOWERS for layer in architecture.layers):
        raise RecipeError("this net has one tower: --towers needs the paper's two")


def _half(layer: Layer) -> Layer:
    match layer:
        case Conv():
            return replace(layer, kernels=layer.kernels // TOWERS, towers=1)
        case Norm():
            return replace(layer, towers=1)
        case Hidden():
            return replace(layer, neurons=layer.neurons // TOWERS)
    return layer


class Towers:
    """A `Scheme` of two processes with a tower each: both take every image of every batch."""

    def __init__(self, architecture: Architecture, recipe: Recipe, group: Group) -> None:
        """Build this process's tower; `require_towers` says of which nets."""
        self._architecture, self._recipe, self._group = architecture, recipe, group
        self._exchange = Exchange(group.rank)
        self.module: TowerNet = TowerNet(architecture, self._exchange).to(  # type: ignore[call-overload]
            group.device, memory_format=torch.channels_last
        )
        self.optimiser = build_optimiser(self.module, recipe)

    def rows(self, count: int) -> tuple[int, int]:
        """Return all rows."""
        return 0, count

    def logits(self, x: Tensor, rows: tuple[int, int] | None) -> Tensor:  # noqa: ARG002 (always all)
        """Return the logits of the batch, the same in both processes."""
        return cast(Tensor, self.module(x))

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the values: both processes have counted every image."""
        return list(values)

    def validation_share(self) -> tuple[int, int]:
        """Return all images."""
        return 0, 1

    def backward(self, loss: Tensor) -> None:
        """Leave the gradients of this tower."""
        loss.backward()  # type: ignore[no-untyped-call]

    def begin(self, info: RunInfo, parent: Parent | None) -> bool:
        """Begin the whole net, as one process does, and take this tower's part; return whether fc8 is the parent's."""
        net, _ = self._whole_net()
        kept_last = begin_net(net, info, parent)
        self.module.take(net.state_dict())
        return kept_last

    def restore(self, run: Path) -> Place:
        """Take this tower's part of the run's checkpoint, which the first process reads for both."""
        net, optimiser = self._whole_net()
        place = restore_for_all(run, net, optimiser, self._group)
        self.module.take(net.state_dict())
        for (name, whole), weight in zip(net.named_parameters(), self.module.parameters(), strict=True):
            if optimiser.state.get(whole):
                part = self.module.part(name, optimiser.state[whole]["momentum_buffer"])
                self.optimiser.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(part).detach()
        return place

    def checkpoint(self, run: Path, place: Place) -> None:
        """Put the whole net together in the first process, which replaces the run's checkpoint."""
        net, optimiser = self._whole_net()
        self._collect(net, optimiser)
        if self._group.first:
            write_checkpoint(run, net, optimiser, place)

    def finish(self, run: Path, step: int) -> None:
        """Put the whole net together in the first process, which writes it."""
        net, optimiser = self._whole_net()
        self._collect(net, optimiser)
        if self._group.first:
            finish(run, net, step)

    def sent(self) -> dict[str, int]:
        """Return the bytes that this tower sent for each layer since the last call, in the layers' order."""
        taken = self._exchange.taken()
        return {name: taken[name] for name, _ in self.module.named_children() if name in taken}

    def _whole_net(self) -> tuple[AlexNet, torch.optim.Optimizer]:
        with torch.random.fork_rng(devices=[]):  # dropout's random numbers go on as if no net were built here
            net = AlexNet(self._architecture)
        net = net.to(self._group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net, build_optimiser(net, self._recipe)

    @torch.no_grad()
    def _collect(self, net: AlexNet, optimiser: torch.optim.Optimizer) -> None:
        mine = dict(self.module.named_parameters())
        for name, weight in net.named_parameters():
            weight.copy_(self.module.whole(name, mine[name]))
            velocity = self.optimiser.state.get(mine[name], {}).get("momentum_buffer")
            if velocity is not None:
                optimiser.state[weight]["momentum_buffer"] = self.module.whole(name, velocity)
