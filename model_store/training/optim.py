"""Optimizers and learning rate schedules of recipes.

Guarantees: the paper's update rule is implemented literally (its velocity includes the learning rate), besides torch's.
The state of a schedule is a small dict, which checkpoints store.
References: the paper, section 5; layers-145.cfg (biases); Smith 2018 (one cycle); He et al. 2019 (cosine).
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn

from model_store.training.recipe import Recipe

_START: Final = 1 / 25  # first rate of one cycle, as a share of its highest rate
_END: Final = 1e-4  # last rate, likewise


class PaperSGD(torch.optim.Optimizer):
    """v <- momentum v - decay rate w - rate g; w <- w + v (section 5).

    torch's SGD does not include the rate in v, so the two differ in the steps after the rate changes.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (closures are not supported)
        """Update every weight that has a gradient."""
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


def build_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for `net`. Its groups separate fc8 and biases; `set_rate` sets the rates."""
    rate, momentum, decay = recipe.highest_rate, recipe.momentum, recipe.weight_decay
    bias_decay = decay if recipe.decay_biases else 0.0
    groups = []
    for head, factor in ((False, recipe.body_rate_factor), (True, 1.0)):
        layers = [(name, value) for name, value in net.named_parameters() if name.startswith("fc8.") == head]
        weights = [value for name, value in layers if not name.endswith(".bias")]
        biases = [value for name, value in layers if name.endswith(".bias")]
        groups += [
            {"params": weights, "factor": factor},
            {"params": biases, "factor": factor * recipe.bias_rate_factor, "weight_decay": bias_decay},
        ]
    if recipe.update == "paper":
        return PaperSGD(groups, {"lr": rate, "momentum": momentum, "weight_decay": decay})
    return torch.optim.SGD(groups, rate, momentum, weight_decay=decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of an optimizer of `build_optimizer`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class Schedule:
    """The learning rate of each step. This base class has a constant rate, the recipe's highest, and no state."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self._recipe, self._highest, self._steps = recipe, recipe.highest_rate, steps

    def rate(self, step: int) -> float:  # noqa: ARG002 (used by subclasses)
        """Return the rate of a step, counted from 0 over the whole run."""
        return self._highest

    def after_epoch(self, val_error: float) -> bool:  # noqa: ARG002 (used by subclasses)
        """Record the validation error of an epoch. Returns False to end the run."""
        return True

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from the state of a checkpoint."""


class OneCycle(Schedule):
    """Half a cosine up to the highest rate during the share `warm_up` of all steps, then half a cosine down."""

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        warm_up = self._recipe.warm_up * self._steps
        if step < warm_up:
            share, low = 1 - step / warm_up, _START
        else:
            share, low = (step - warm_up) / max(1, self._steps - 1 - warm_up), _END
        return self._highest * (low + (1 - low) * _half_cosine(share))


class Cosine(Schedule):
    """A linear warm-up to the highest rate during the share `warm_up` of all steps, then half a cosine down to 0."""

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        warm_up = self._recipe.warm_up * self._steps
        if step < warm_up:
            return self._highest * (step + 1) / (warm_up + 1)
        return self._highest * _half_cosine((step - warm_up) / max(1.0, self._steps - warm_up))


class Plateau(Schedule):
    """Divide the rate by 10 after `patience` epochs without a lower validation error, `drops` times, then stop."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        super().__init__(recipe, steps)
        self._best, self._waited, self._drops = math.inf, 0, 0

    def rate(self, step: int) -> float:  # noqa: ARG002 (the rate depends on the errors)
        """Return the current rate."""
        return float(self._highest / 10**self._drops)

    def after_epoch(self, val_error: float) -> bool:
        """Record a validation error, and lower the rate if it is time. Returns False after the last drop."""
        if val_error < self._best:
            self._best, self._waited = val_error, 0
            return True
        self._waited += 1
        if self._waited >= self._recipe.patience:
            self._waited = 0
            self._drops += 1
        return self._drops <= self._recipe.drops

    def state(self) -> dict[str, float]:
        """Return the lowest error (2 if there is none yet), the epochs since then, and the drops so far."""
        return {"best": min(self._best, 2.0), "waited": self._waited, "drops": self._drops}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from the state of a checkpoint."""
        self._best, self._waited, self._drops = state["best"], int(state["waited"]), int(state["drops"])


def _half_cosine(share: float) -> float:
    """Return a value that falls from 1 to 0 along half a cosine as `share` rises from 0 to 1."""
    return (1 + math.cos(math.pi * min(1.0, share))) / 2


def build_schedule(recipe: Recipe, steps: int) -> Schedule:
    """Return the schedule of a recipe for a run of `steps` steps."""
    schedules = {"one-cycle": OneCycle, "cosine": Cosine, "plateau": Plateau, "constant": Schedule}
    return schedules[recipe.schedule](recipe, steps)
