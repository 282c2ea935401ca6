"""The layer tables of public nets, and `ImportedNet`: a net that was read from a file but not yet published.

Guarantees: an `ImportedNet` has all weights of its architecture as finite float32 tensors of the right shapes. They
accept RGB pixels 0-255 minus the mean image, like those of `AlexNet`, so that trained and imported nets are written by
the same code.
Out of scope: reading files (caffe.py, onnx_net.py and torchvision.py do that).
References: deploy.prototxt of Caffe's bvlc_alexnet and bvlc_reference_caffenet; torchvision's alexnet.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.durable import sha256_of
from model_store.image import SIZE
from model_store.training.errors import ImportFormatError
from model_store.training.export.graph import parameter_shapes
from model_store.training.importers.file_kind import readable
from model_store.training.nets.alexnet import PAPER_LAYERS, Architecture, Conv, Hidden, Layer, Norm, Pool

# Caffe uses k = 1 and divides alpha by the 5 neighbors, so the formula's alpha is a fifth of the 1e-4 in its files.
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


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The file that a net was read from. sha256: hexadecimal. size: bytes. parts: other files that have its weights."""

    kind: str
    path: Path
    sha256: str
    size: int
    parts: tuple[SourceFile, ...] = ()

    @classmethod
    def of(cls, kind: str, path: Path, parts: Sequence[Path] = ()) -> SourceFile:
        """Hash `path` and `parts`. Raises ImportFormatError if one cannot be read."""
        with readable(path):
            own_parts = tuple(cls.of(kind, part) for part in parts)
            return cls(kind, path, sha256_of(path), path.stat().st_size, own_parts)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, without the folder."""
        values = {"kind": self.kind, "file": self.path.name, "sha256": self.sha256, "size": self.size}
        return values | ({"parts": [part.to_dict() for part in self.parts]} if self.parts else {})


@dataclass(frozen=True, slots=True)
class ImportedNet:
    """A public net with its preprocessing.

    mean: float32 [256, 256, 3], RGB 0-255. preprocessing: a description of what the graph does to the pixels.
    remarks: notes for the user, such as assumptions about what the file does not specify.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    mean: NDArray[np.float32]
    preprocessing: str
    source: SourceFile
    remarks: tuple[str, ...] = ()


def pool_first(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the same table with each norm after its pooling layer: the order of CaffeNet."""
    out = list(layers)
    for index, (layer, above) in enumerate(pairwise(layers)):
        if isinstance(layer, Norm) and isinstance(above, Pool):
            out[index], out[index + 1] = above, layer
    return tuple(out)


def learned_layers(architecture: Architecture) -> list[str]:
    """Return the names of the layers that have weights, in order."""
    return list(dict.fromkeys(name.partition(".")[0] for name in parameter_shapes(architecture)))


def color_image(color: Sequence[float]) -> NDArray[np.float32]:
    """Return a mean image, float32 [256, 256, 3], of one RGB color."""
    return np.broadcast_to(np.array(color, np.float32), (SIZE, SIZE, 3)).copy()


def checked_weights(
    path: Path, architecture: Architecture, found: Mapping[str, Tensor], file_names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the weights `found` as float32, in the net's order.

    file_names: the name of each layer in the file. Raises ImportFormatError if a shape is wrong or a value not finite.
    """
    weights = {}
    for name, shape in parameter_shapes(architecture).items():
        layer, _, parameter = name.partition(".")
        tensor = found[name]
        alias = f" ({layer})" if file_names[layer] != layer else ""
        where = f"the {parameter} of layer {file_names[layer]}{alias}"
        if tuple(tensor.shape) != shape:
            shapes = f"{shape_text(tensor.shape)}, but {architecture.name} has {shape_text(shape)}"
            raise ImportFormatError(path, f"{where} has the shape {shapes}. It is another net")
        if not tensor.is_floating_point():
            raise ImportFormatError(path, f"{where} is {tensor.dtype} instead of floating point")
        weights[name] = tensor.to(torch.float32).contiguous()
        if not bool(torch.isfinite(weights[name]).all()):
            raise ImportFormatError(path, f"{where} has values that are not finite, so the file is damaged")
    return weights


def check_setting(path: Path, where: str, setting: str, found: Any, expected: Any) -> None:
    """Raise ImportFormatError if a setting of a layer in the file differs from the expected one."""
    if found != expected:
        raise ImportFormatError(path, f"{where} has {setting} {found} instead of {expected}, so it is another net")


def norm_of_file(path: Path, where: str, layer: Norm, *, size: int, alpha: float, beta: float, k: float) -> Norm:
    """Return `layer` with the constants of a Caffe or ONNX file, whose alpha is divided by the number of neighbors.

    Raises ImportFormatError if the size is even or beta is not .75.
    """
    if size % 2 == 0 or abs(beta - 0.75) > 1e-6:
        raise ImportFormatError(
            path, f"{where} has size {size}, beta {beta:g}. Only odd sizes and beta .75 are supported"
        )
    # Files store single precision. Rounding to 7 digits restores the number that was written.
    return replace(layer, size=size, alpha=float(f"{alpha:.7g}") / size, k=float(f"{k:.7g}"))


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text, such as "96x3x11x11"."""
    return "x".join(map(str, shape)) or "a single number"
