"""The variants that the paper compares with its net, as changes to the table of layers.

Guarantees: a variant differs from the full net only in what its name says. If a convolution is removed, the next layer
keeps its number of kernels and towers.
References: the paper, sections 3.2 (one tower, with the sizes of footnote 2), 3.3 (no LRN), 3.4 (2x2 pooling), 6 (a
sixth convolution) and 7 (middle layers removed). The paper does not give the size of its sixth convolution. Here it has
the size of conv5 (256 kernels of 3x3 in two towers), which keeps the number of inputs of fc6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from model_store.training.nets.alexnet import PAPER_LAYERS, Conv, Layer, Norm, Pool

Variant = Literal["full", "one-tower", "no-lrn", "pool-2x2", "no-conv3", "no-conv4", "no-conv5", "sixth-conv"]


@dataclass(frozen=True, slots=True)
class Published:
    """The effect of a variant according to the paper, in points of top-1 and top-5 error. None: not published."""

    top1: float
    top5: float | None
    where: str


# Error of the variant minus error of the full net.
PUBLISHED: Final[Mapping[Variant, Published]] = {
    "one-tower": Published(1.7, 1.2, "section 3.2"),
    "no-lrn": Published(1.4, 1.2, "section 3.3"),
    "pool-2x2": Published(0.4, 0.3, "section 3.4"),
    "no-conv3": Published(2.0, None, 'section 7, "about 2%"'),
    "no-conv4": Published(2.0, None, 'section 7, "about 2%"'),
    "no-conv5": Published(2.0, None, 'section 7, "about 2%"'),
}


def variant_layers(variant: Variant) -> tuple[Layer, ...]:
    """Return the table of layers of a variant."""
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
            position = PAPER_LAYERS.index(Pool("pool5")) + 1
            return (*PAPER_LAYERS[:position], Conv("conv6", 256, 3, padding=1, towers=2), *PAPER_LAYERS[position:])


def _one_tower(layer: Layer) -> Layer:
    """Halve the kernels of conv1 to conv4. conv5 and the fully-connected layers stay the same (footnote 2)."""
    if not isinstance(layer, Conv):
        return layer
    return replace(layer, towers=1, kernels=layer.kernels if layer.name == "conv5" else layer.kernels // 2)
