"""Start a net from the weights of another (the paper, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_store.errors import RecipeError
from model_store.training.nets.alexnet import DROPOUT_RATE, AlexNet, Architecture, Conv
from model_store.training.recipe import Recipe

_LAST = "fc8"


@dataclass(frozen=True, slots=True)
class Parent:
    """Trained weights, in the form of `architecture`, and what `run.json` calls them: "solar:1" or a run's folder."""

    name: str
    architecture: Architecture
    classes: tuple[str, ...]
    weights: Mapping[str, Tensor]


def child_architecture(parent: Parent, recipe: Recipe, classes: int) -> Architecture:
    """Return the parent's layers with the recipe's dropout and input factor, and `classes` classes.

    Raises RecipeError when the recipe asks for a variant or width of its own and that is another net.
    """
    if (recipe.variant, recipe.width) != ("full", 1) and (
        recipe.architecture(classes).layers != parent.architecture.layers
    ):
        raise RecipeError(
            f"the layers of {parent.name} are not those of variant={recipe.variant}, width={recipe.width:g}: a net "
            "that begins from another has its layers, so leave the two out of the recipe"
        )
    return replace(parent.architecture, classes=classes, dropout=recipe.dropout, input_scale=recipe.input_scale)


@torch.no_grad()
def begin_from(net: AlexNet, parent: Parent, classes: tuple[str, ...]) -> bool:
    """Give `net`, whose outputs are `classes`, the parent's weights; return whether fc8 came with them.

    fc8 stays as it is when the two have other classes; the same classes in another order are put in order.
    """
    mine, theirs = _factors(net.architecture), _factors(parent.architecture)
    keep_last = set(classes) == set(parent.classes)
    order = [parent.classes.index(label) for label in classes] if keep_last else []
    for name, parameter in net.named_parameters():
        layer = name.partition(".")[0]
        if layer == _LAST and not keep_last:
            continue
        values = parent.weights[name][order] if layer == _LAST else parent.weights[name]
        factor = theirs.get(name, 1.0) / mine.get(name, 1.0)
        parameter.copy_(values if factor == 1 else values * factor)
    return keep_last


def _factors(architecture: Architecture) -> dict[str, float]:
    """Return by which factor the net multiplies what these weights give, when it answers."""
    factors = {}
    first = architecture.layers[0]
    if isinstance(first, Conv):
        factors[f"{first.name}.weight"] = architecture.input_scale
    if architecture.dropout == "paper":
        factors |= {f"{reader}.weight": 1 - DROPOUT_RATE for reader in architecture.readers_of_dropped()}
    return factors
