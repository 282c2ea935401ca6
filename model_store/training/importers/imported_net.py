"""The public nets as tables of layers, and an imported net before it is published.

Promises: `ImportedNet` has every weight of its table, finite, float32, of the table's shapes, for RGB pixels 0-255
minus its mean image: the form of `network.AlexNet`, so that one writer serves trained and imported nets alike.
Does not: read files (caffe.py, onnx_zoo.py, torchvision.py do).
Source: Caffe's bvlc_alexnet and bvlc_reference_caffenet, deploy.prototxt; torchvision's alexnet.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.durable import sha256_of
from model_store.errors import CheckpointError, ImportFormatError
from model_store.image import SIZE
from model_store.training.nets.alexnet import PAPER_LAYERS, AlexNet, Architecture, Conv, Hidden, Layer, Norm, Pool

# Caffe's k is 1, and its alpha is divided by the 5 neighbours: the formula's alpha is a fifth of the 1e-4 in its files.
_CAFFE_ALPHA: Final = 1e-4 / 5
ALEXNET_LAYERS: Final[tuple[Layer, ...]] = tuple(
    replace(layer, alpha=_CAFFE_ALPHA, k=1.0) if isinstance(layer, Norm) else layer for layer in PAPER_LAYERS
)
OWT_LAYERS: Final[tuple[Layer, ...]] = (
    Conv("conv1", 64, 11, stride=4, padding=2),
    Pool("pool1"),
    Conv("conv2", 192, 5, padding=2),
    Pool("pool2"),
    Conv("conv3", 384, 3, padding=1),
    Conv("conv4", 256, 3, padding=1),
    Conv("conv5", 256, 3, padding=1),
    Pool("pool5"),
    Hidden("fc6", 4096),
    Hidden("fc7", 4096),
)
# The ILSVRC-2012 mean image's mean colour, as Caffe's own examples subtract it.
IMAGENET_MEAN_BGR: Final = (104.00698793, 116.66876762, 122.67891434)


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a net came from. sha256 in hexadecimal, size in bytes."""

    kind: str
    path: Path
    sha256: str
    size: int

    @classmethod
    def of(cls, kind: str, path: Path) -> Source:
        """Hash `path`. Raises ImportFormatError when it cannot be read."""
        try:
            return cls(kind, path, sha256_of(path), path.stat().st_size)
        except OSError as exc:
            raise ImportFormatError(path, exc.strerror or str(exc)) from exc


@dataclass(frozen=True, slots=True)
class ImportedNet:
    """A public net in this project's form: see the module's promise.

    mean: float32 [256, 256, 3], RGB 0-255. preprocessing: what the graph does to the pixels, in words.
    remarks: what the user should know: what was assumed because the file does not say it.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    mean: NDArray[np.float32]
    preprocessing: str
    source: Source
    remarks: tuple[str, ...] = ()


def pool_first(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the same table with each norm behind its pooling: CaffeNet's order."""
    out = list(layers)
    for index, (layer, above) in enumerate(pairwise(layers)):
        if isinstance(layer, Norm) and isinstance(above, Pool):
            out[index], out[index + 1] = above, layer
    return tuple(out)


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the net, by name, in order, without making it."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in AlexNet(architecture).named_parameters()}


def learned(architecture: Architecture) -> list[str]:
    """Return the names of the layers that have weights, in order."""
    return list(dict.fromkeys(name.partition(".")[0] for name in shapes_of(architecture)))


def colour_image(colour: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return a mean image, float32 [256, 256, 3], of one colour (RGB)."""
    return np.broadcast_to(np.array(colour, np.float32), (SIZE, SIZE, 3)).copy()


def checked(
    path: Path, architecture: Architecture, found: Mapping[str, Tensor], called: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the weights `found` as float32, in the net's order.

    called: what the file calls each layer. Raises ImportFormatError naming the layer and both shapes when one differs,
    and the layer when a value is not finite.
    """
    weights = {}
    for name, shape in shapes_of(architecture).items():
        layer, _, which = name.partition(".")
        tensor = found[name]
        where = f"layer {called[layer]}" + (f" (our {layer})" if called[layer] != layer else "")
        if tuple(tensor.shape) != shape:
            raise ImportFormatError(
                path,
                f"the {which} of {where} has the shape {_text(tensor.shape)}, and {architecture.name} has "
                f"{_text(shape)}: it is another net",
            )
        if not tensor.is_floating_point():
            raise ImportFormatError(path, f"the {which} of {where} is {tensor.dtype}, not floating point")
        weights[name] = tensor.to(torch.float32).contiguous()
        if not bool(torch.isfinite(weights[name]).all()):
            raise ImportFormatError(path, f"the {which} of {where} has values that are not finite: the file is broken")
    return weights


def to_rgb(weights: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return weights whose first convolution takes RGB instead of BGR."""
    first = f"{learned(architecture)[0]}.weight"
    return {**weights, first: weights[first].flip(1).contiguous()}


def manifest_recipe(net: ImportedNet) -> dict[str, Any]:
    """Return what the manifest says of where a net came from and what it does to pixels."""
    source = net.source
    return {
        "imported": {
            "kind": source.kind,
            "file": source.path.name,
            "sha256": source.sha256,
            "size": source.size,
        },
        "preprocessing": net.preprocessing,
        "remarks": list(net.remarks),
        "architecture": net.architecture.to_dict(),
    }


def build(net: ImportedNet) -> AlexNet:
    """Return the net in torch with its weights, in evaluation mode. Raises CheckpointError for a broken table."""
    model = AlexNet(net.architecture)
    try:
        model.load_state_dict(dict(net.weights), assign=True)
    except RuntimeError as exc:  # our own tables and names: no file can cause it
        raise CheckpointError(f"{net.architecture.name} does not take these weights: {exc}") from exc
    return model.eval().requires_grad_(False)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
