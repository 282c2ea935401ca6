"""The nets that the paper compares with its own, by name, as changes to its table of layers.

Promises: a variant differs from the whole net in what its name says and in nothing else: where a convolution is taken
out, the next one reads the maps below with the towers it has, and fc6 reads what the last pooling leaves.
Does not: choose classes, width or dropout (the recipe does).
Source: the paper, sections 3.2 (one tower, with footnote 2's sizes), 3.3 (no LRN), 3.4 (2x2 pooling), 6 (a sixth
convolution) and 7 (middle layers removed). The paper does not say how large its sixth convolution is: here it is as
conv5, 256 kernels of 3x3 in two towers, so that fc6 reads as many inputs as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from model_store.training.nets.alexnet import PAPER_LAYERS, Conv, Layer, Norm, Pool

Variant = Literal["full", "one-tower", "no-lrn", "pool-2x2", "no-conv3", "no-conv4", "no-conv5", "sixth-conv"]


@dataclass(frozen=True, slots=True)
class Published:
    """What the paper says a variant costs: points of top-1 and top-5 error against the whole net; None: not said."""

    top1: float
    top5: float | None
    where: str


# Points of error, the variant's minus the whole net's.
PUBLISHED: Final[Mapping[Variant, Published]] = {
    "one-tower": Published(1.7, 1.2, "section 3.2"),
    "no-lrn": Published(1.4, 1.2, "section 3.3"),
    "pool-2x2": Published(0.4, 0.3, "section 3.4"),
    "no-conv3": Published(2.0, None, 'section 7, "about 2%"'),
    "no-conv4": Published(2.0, None, 'section 7, "about 2%"'),
    "no-conv5": Published(2.0, None, 'section 7, "about 2%"'),
}
_LAST_POOL: Final = "pool5"


def variant_layers(variant: Variant) -> tuple[Layer, ...]:
    """Return the table of layers of the paper's variant `variant`."""
    match variant:
        case "full":
            return PAPER_LAYERS
        case "one-tower":
            return tuple(_one_tower(layer) for layer in PAPER_LAYERS)
        case "no-lrn":
            return tuple(layer for layer in PAPER_LAYERS if not isinstance(layer, Norm))
        case "pool-2x2":
            return tuple(replace(layer, size=2) if isinstance(layer, Pool) else layer for layer in PAPER_LAYERS)
        case "no-conv3" | "no-conv4" | "no-conv5":
            return tuple(layer for layer in PAPER_LAYERS if layer.name != variant.removeprefix("no-"))
        case "sixth-conv":
            above = [layer.name for layer in PAPER_LAYERS].index(_LAST_POOL) + 1
            sixth = Conv("conv6", 256, 3, padding=1, towers=2)
            return (*PAPER_LAYERS[:above], sixth, *PAPER_LAYERS[above:])


def _one_tower(layer: Layer) -> Layer:
    """Half of the kernels in conv1 to conv4; conv5 and the fully-connected layers stay (footnote 2)."""
    if not isinstance(layer, Conv):
        return layer
    return replace(layer, towers=1, kernels=layer.kernels if layer.name == "conv5" else layer.kernels // 2)
