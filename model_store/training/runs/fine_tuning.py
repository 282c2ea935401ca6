"""Initialize a net with the weights of another one (the paper, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from model_store.errors import RecipeError
from model_store.training.nets.alexnet import DROPOUT_RATE, AlexNet, Architecture, Conv
from model_store.training.recipe import Recipe

_LAST: Final = "fc8"


@dataclass(frozen=True, slots=True)
class Parent:
    """A trained net to start from. `name` is that of a version ("solar:1") or of a run's folder."""

    name: str
    architecture: Architecture
    classes: tuple[str, ...]
    weights: Mapping[str, Tensor]


def child_architecture(parent: Parent, recipe: Recipe, classes: int) -> Architecture:
    """Return the parent's layers with the recipe's dropout and input scale, and `classes` classes.

    Raises RecipeError if the recipe asks for a variant or width whose layers differ from the parent's.
    """
    if (recipe.variant, recipe.width) != ("full", 1) and (
        recipe.architecture(classes).layers != parent.architecture.layers
    ):
        raise RecipeError(
            f"The layers of {parent.name} are not those of variant={recipe.variant}, width={recipe.width:g}. A "
            "fine-tuned net has the layers of its parent, so remove variant and width from the recipe."
        )
    return replace(parent.architecture, classes=classes, dropout=recipe.dropout, input_scale=recipe.input_scale)


@torch.no_grad()
def load_parent_weights(net: AlexNet, parent: Parent, classes: tuple[str, ...]) -> bool:
    """Copy the parent's weights into `net`, whose outputs are `classes`. Returns whether fc8 was copied too.

    fc8 is left unchanged if the sets of classes differ. If only their order differs, the outputs are reordered.
    """
    own, parents = _weight_factors(net.architecture), _weight_factors(parent.architecture)
    same_classes = set(classes) == set(parent.classes)
    order = [parent.classes.index(label) for label in classes] if same_classes else []
    for name, parameter in net.named_parameters():
        layer = name.partition(".")[0]
        if layer == _LAST and not same_classes:
            continue
        values = parent.weights[name][order] if layer == _LAST else parent.weights[name]
        factor = parents.get(name, 1.0) / own.get(name, 1.0)
        parameter.copy_(values if factor == 1 else values * factor)
    return same_classes


def _weight_factors(architecture: Architecture) -> dict[str, float]:
    """Return the factors by which the net multiplies weights at inference: input scale, and the paper's dropout."""
    factors = {}
    first = architecture.layers[0]
    if isinstance(first, Conv):
        factors[f"{first.name}.weight"] = architecture.input_scale
    if architecture.dropout == "paper":
        factors |= {f"{layer}.weight": 1 - DROPOUT_RATE for layer in architecture.layers_after_dropout()}
    return factors
