"""The update rule and the learning rate's schedule of a recipe.

Promises: the paper's rule to the letter (the velocity carries the rate), beside torch's; schedules whose whole state is
a small dict, so that a resumed run goes on exactly.
Does not: choose a rate; the recipe does, in proportion to its batch where it says so.
Source: the paper, section 5; layers-145.cfg for the biases; Smith 2018 for one cycle; He et al. 2019 for the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import nn

from model_store.training.recipe import Recipe

_START: Final = 1 / 25  # one cycle begins at this share of its highest rate
_END: Final = 1e-4


class PaperSGD(torch.optim.Optimizer):
    """v <- momentum v - decay rate w - rate g; w <- w + v (section 5).

    torch's SGD keeps v without the rate, so that the two differ in the steps after a change of the rate.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        if closure is not None:
            raise ValueError("PaperSGD takes no closure")
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                velocity = state["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(weight, alpha=-decay * rate).add_(weight.grad, alpha=-rate)
                weight.add_(velocity)


def build_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the weights and the biases of `net`; `set_rate` gives it its rate."""
    weights = [value for name, value in net.named_parameters() if not name.endswith(".bias")]
    biases = [value for name, value in net.named_parameters() if name.endswith(".bias")]
    groups = [
        {"params": weights, "factor": 1.0},
        {
            "params": biases,
            "factor": recipe.bias_rate_factor,
            "weight_decay": recipe.weight_decay if recipe.decay_biases else 0.0,
        },
    ]
    rate, momentum, decay = recipe.highest_rate, recipe.momentum, recipe.weight_decay
    if recipe.update == "paper":
        return PaperSGD(groups, rate, momentum, decay)
    return torch.optim.SGD(groups, rate, momentum, weight_decay=decay, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `build_optimiser` its learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


class Schedule(Protocol):
    """The learning rate of each step, and whether the run should go on."""

    def rate(self, step: int) -> float:
        """Return the rate of the step, counted from 0 over the whole run."""
        ...

    def after_epoch(self, val_error: float) -> bool:
        """Take the validation error of an epoch in; return whether to go on."""
        ...

    def state(self) -> dict[str, float]:
        """Return all that `restore` needs."""
        ...

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        ...


class OneCycle:
    """Half a cosine up to the recipe's rate over the share `warm_up` of all steps, half a cosine down over the rest."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self._highest, self._steps, self._climb = recipe.highest_rate, steps, recipe.warm_up * steps

    def rate(self, step: int) -> float:
        """Return the rate of the step."""
        if step < self._climb:
            share, low = 1 - step / self._climb, _START
        else:
            share, low = (step - self._climb) / max(1, self._steps - 1 - self._climb), _END
        height = (1 + math.cos(math.pi * min(1.0, share))) / 2
        return self._highest * (low + (1 - low) * height)

    def after_epoch(self, val_error: float) -> bool:  # noqa: ARG002 (the cycle has a fixed length)
        """Go on."""
        return True

    def state(self) -> dict[str, float]:
        """Return nothing: the step alone decides."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Take nothing."""


class Cosine(OneCycle):
    """A straight line up to the recipe's rate over the share `warm_up` of all steps, then half a cosine down to 0."""

    def rate(self, step: int) -> float:
        """Return the rate of the step."""
        if step < self._climb:
            return float(self._highest * (step + 1) / (self._climb + 1))
        share = (step - self._climb) / max(1.0, self._steps - self._climb)
        return float(self._highest * (1 + math.cos(math.pi * min(1.0, share))) / 2)


class Plateau:
    """Divide the rate by 10 after `patience` epochs without a better validation error, `drops` times; then stop."""

    def __init__(self, recipe: Recipe) -> None:
        self._highest, self._patience, self._most = recipe.highest_rate, recipe.patience, recipe.drops
        self._best, self._waited, self._drops = math.inf, 0, 0

    def rate(self, step: int) -> float:  # noqa: ARG002 (the step does not matter here)
        """Return the rate as it is now."""
        return float(self._highest / 10**self._drops)

    def after_epoch(self, val_error: float) -> bool:
        """Drop the rate when it is time; return False when it would drop once more than `drops`."""
        if val_error < self._best:
            self._best, self._waited = val_error, 0
            return True
        self._waited += 1
        if self._waited >= self._patience:
            self._waited = 0
            self._drops += 1
        return self._drops <= self._most

    def state(self) -> dict[str, float]:
        """Return the best error, the epochs waited and the drops made; no error yet is 2, which no error reaches."""
        return {"best": min(self._best, 2.0), "waited": self._waited, "drops": self._drops}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        self._best, self._waited, self._drops = state["best"], int(state["waited"]), int(state["drops"])


class Constant(OneCycle):
    """The recipe's rate at every step."""

    def rate(self, step: int) -> float:  # noqa: ARG002 (the step does not matter here)
        """Return the recipe's rate."""
        return self._highest


def build_schedule(recipe: Recipe, steps: int) -> Schedule:
    """Return the recipe's schedule for a run of `steps` steps."""
    match recipe.schedule:
        case "one-cycle":
            return OneCycle(recipe, steps)
        case "cosine":
            return Cosine(recipe, steps)
        case "plateau":
            return Plateau(recipe)
        case "constant":
            return Constant(recipe, steps)
