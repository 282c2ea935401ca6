"""The starter: trained weights of conv1 to conv5, with which small sets learn faster than with random ones.

They come from a net that was trained for four epochs on 40,000 images of CIFAR-10, enlarged to 256x256, in float16.
Guarantees: a net with other convolutions than the paper's keeps its random weights. The fully connected layers too.
References: Yosinski et al. 2014, "How transferable are features in deep neural networks?"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from typing import Final

import torch
from safetensors import safe_open

from model_store.training.nets.alexnet import AlexNet

_PACKAGE, _FILE = "model_store.training.recipes", "starter.safetensors"
_FIRST: Final = "conv1.weight"
_SCALE: Final = "input_scale"  # in the metadata of the file: that of the net that the weights come from


@torch.no_grad()
def load_starter(net: AlexNet) -> bool:
    """Copy the weights of conv1 to conv5 into `net`, if it has these layers. Returns whether it has."""
    weights, scale = _read()
    parameters = dict(net.named_parameters())
    if any(name not in parameters or parameters[name].shape != values.shape for name, values in weights.items()):
        return False
    for name, values in weights.items():
        factor = scale / net.architecture.input_scale if name == _FIRST else 1.0
        parameters[name].copy_(values.float() * factor)
    return True


def _read() -> tuple[Mapping[str, torch.Tensor], float]:
    """Return the weights by name, float16, and the input scale that they are for."""
    with as_file(files(_PACKAGE) / _FILE) as path, safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it cannot be iterated
        return weights, float(file.metadata()[_SCALE])
