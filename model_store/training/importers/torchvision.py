"""Read torchvision's AlexNet, `alexnet-owt-*.pth`, and nets with its layers, from a PyTorch or safetensors file.

Guarantees: every weight is found by torchvision's name, whatever the prefixes, and its shape is checked. The three
fully-connected layers may have other positions in the classifier, as in a head that was replaced.
Out of scope: the net of the 2012 paper. This one is from "One weird trick": one tower, other widths, no normalization.
References: torchvision's models/alexnet.py and AlexNet_Weights.IMAGENET1K_V1 (transforms with mean and deviation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from model_store.training.errors import ImportFormatError
from model_store.training.importers import imported_net
from model_store.training.importers.imported_net import OWT_LAYERS, ImportedNet, SourceFile
from model_store.training.importers.state_dict import StateDict, read_state_dict
from model_store.training.nets.alexnet import Architecture, Layer

MEAN: Final = (0.485, 0.456, 0.406)  # RGB, of pixels 0-1
DEVIATION: Final = (0.229, 0.224, 0.225)
_CONVOLUTIONS: Final = tuple(f"features.{index}" for index in (0, 3, 6, 8, 10))
_CLASSIFIER: Final = tuple(f"classifier.{index}" for index in (1, 4, 6))
_KINDS: Final = ("weight", "bias")
_LISTED: Final = 3


def read_torchvision(path: Path, *, layers: tuple[Layer, ...] = OWT_LAYERS) -> ImportedNet:
    """Read the weights of torchvision's AlexNet with any number of classes. Raises ImportFormatError."""
    state = read_state_dict(path, f"{_CONVOLUTIONS[0]}.weight")
    source = SourceFile.of("torchvision", path)
    names = _layer_names(path, state.tensors)
    last = state.tensors[f"{names[-1]}.bias"]
    architecture = Architecture(max(last.shape[0] if last.ndim == 1 else 1, 1), layers, dropout="none", name="owt")
    learned = imported_net.learned_layers(architecture)
    tensors = {
        f"{ours}.{kind}": state.tensors[f"{theirs}.{kind}"]
        for ours, theirs in zip(learned, names, strict=True)
        for kind in _KINDS
    }
    weights = imported_net.checked_weights(path, architecture, tensors, dict(zip(learned, names, strict=True)))
    return torchvision_net(architecture, weights, source, _remarks(state))


def torchvision_net(
    architecture: Architecture, weights: dict[str, Tensor], source: SourceFile, remarks: Sequence[str] = ()
) -> ImportedNet:
    """Return a net that was trained with torchvision's transforms, changed to accept pixels 0-255.

    The scale of the pixels (0-1, divided by the deviations) moves into the first kernels. remarks: added for the user.
    """
    first = next(iter(weights))
    scaled = weights[first] / (255 * torch.tensor(DEVIATION, dtype=torch.float64)[:, None, None])
    mean = [255 * value for value in MEAN]
    red, green, blue = mean
    preprocessing = (
        f"RGB 0-255, minus the mean color ({red:.3f}, {green:.3f}, {blue:.3f}), which is torchvision's mean .485 .456 "
        ".406. The division by 255 and by the deviations .229 .224 .225 is in the first kernels."
    )
    remark = "This is torchvision's net (owt: one tower, no normalization), not the paper's."
    return ImportedNet(
        architecture,
        {**weights, first: scaled.to(torch.float32)},
        imported_net.color_image(mean),
        preprocessing,
        source,
        (remark, *remarks),
    )


def _layer_names(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names in the file of the eight layers, in order. Raises ImportFormatError if they are others."""
    linear = sorted(
        {name.rpartition(".")[0] for name in tensors if name.startswith("classifier.")},
        key=lambda name: [int(part) if part.isdecimal() else -1 for part in name.split(".")],
    )
    places = [int(name.split(".")[1]) for name in linear if name.split(".")[1].isdecimal()]
    # There is a ReLU between two layers, so that their positions are not adjacent.
    is_classifier = len(linear) == len(places) == len(_CLASSIFIER) and all(b - a >= 2 for a, b in pairwise(places))
    names = [*_CONVOLUTIONS, *(linear if is_classifier else _CLASSIFIER)]
    expected = {f"{name}.{kind}" for name in names for kind in _KINDS}
    unknown = [name for name in tensors if name not in expected]
    if missing := [f"{name}.{kind}" for name in names for kind in _KINDS if f"{name}.{kind}" not in tensors]:
        keys = ", ".join(list(tensors)[:6])
        more = ", ..." if len(tensors) > 6 else ""
        other = (
            f"its layer {unknown[0].rpartition('.')[0]} is not one of torchvision's AlexNet, and " if unknown else ""
        )
        raise ImportFormatError(path, f"{other}it has no {missing[0]}, so it is another net (it has {keys}{more})")
    if unknown:
        raise ImportFormatError(path, f"torchvision's AlexNet has no {unknown[0]}, so it is another net")
    return names


def _remarks(state: StateDict) -> list[str]:
    remarks = []
    if state.others:
        remarks.append(f"The file also has {'; '.join(state.others)}. Only {state.place} was imported.")
    if state.outside:
        more = ", ..." if len(state.outside) > _LISTED else ""
        names = ", ".join(state.outside[:_LISTED])
        remarks.append(f"The file also has tensors outside of {state.place}, which were not imported: {names}{more}.")
    return remarks
