"""The four-layer CIFAR-10 nets of the paper's figure 1 and section 3.3, each as one table of layers.

    18pct   three convolutions and one fully-connected layer; figure 1 compares ReLU with tanh in it
    13pct   two convolutions, two locally-connected layers, one fully-connected layer
    11pct   the same with twice the kernels in local3, and with local response normalization

Guarantees: pooling rounds up and averages over the pixels inside the image. Weights are drawn from normal distributions
with the deviations of the original tables; biases start at 0. 13pct and 11pct can be built with or without
normalization, so that their two differences (width and normalization) can be measured separately.
Out of scope: mean subtraction and crops (train.py does them); the whole-window normalization of the original 18pct
table, because figure 1 uses no regularization.
References: the paper, sections 3.1 and 3.3 with footnotes; layers-18pct.cfg, layers-conv-local-13pct.cfg and
layers-conv-local-11pct.cfg of cuda-convnet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.training.nets.alexnet import LocalResponseNorm

IMAGE_SIZE: Final = 32

NetName = Literal["18pct", "13pct", "11pct"]
Neuron = Literal["relu", "tanh"]

# The tables specify scale .001 for 9 maps, and the original divides it by the maps, so the formula's alpha is .001/9.
_NORM_ALPHA: Final = 0.001 / 9
# Deviations of the initial weights by layer. Layers that are not listed have 0.01.
_DEVIATIONS: Final = {"layers.conv1": 1e-4, "layers.local3": 0.04, "layers.local4": 0.04}
_LOCAL_DECAYS: Final = {"layers.local3.weight": 0.004, "layers.local4.weight": 0.004}
# Weight decays of the original tables by parameter. Parameters that are not listed have none.
DECAYS: Final[Mapping[NetName, Mapping[str, float]]] = {
    "18pct": {},
    "13pct": {**_LOCAL_DECAYS, "fc10.weight": 0.004},
    "11pct": {**_LOCAL_DECAYS, "fc10.weight": 0.01},
}


class LocallyConnected(nn.Module):
    """A 3x3 layer with stride 1 and padding 1 whose weights are not shared between positions.

    Maps float [n, channels, size, size] to float [n, kernels, size, size]. `weight`: float
    [size * size, 9 * channels, kernels]. Positions are ordered by row; inputs are ordered by row and column in the
    window, then channel. `bias`: [size * size, kernels]. Nine copies gather the windows for one batched product.
    """

    def __init__(self, channels: int, kernels: int, size: int) -> None:
        super().__init__()
        self.size, self.kernels = size, kernels
        self.weight = nn.Parameter(torch.zeros(size * size, 9 * channels, kernels))
        self.bias = nn.Parameter(torch.zeros(size * size, kernels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums before the activation."""
        padded = functional.pad(x, (1, 1, 1, 1)).permute(2, 3, 0, 1).contiguous()  # [rows, columns, n, channels]
        inputs: Tensor = _Windows.apply(padded).flatten(0, 1)  # type: ignore[no-untyped-call]
        sums = torch.baddbmm(self.bias[:, None], inputs, self.weight)
        return sums.view(self.size, self.size, len(x), self.kernels).permute(2, 3, 0, 1)


class _Windows(torch.autograd.Function):
    """Concatenates the 3x3 windows of [size + 2, size + 2, n, channels]: [size, size, n, 9 * channels].

    The gradient is written by hand, because autograd would allocate a map of zeros for each of the nine copies.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor) -> Tensor:  # noqa: ARG004 (nothing to save)
        """Return the windows, ordered by row and column in the window, then channel."""
        size = len(padded) - 2
        return torch.cat([padded[i : i + size, j : j + size] for i in range(3) for j in range(3)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        """Return the sum over all windows that contain each input."""
        (gradient,) = gradients
        size = len(gradient)
        parts = gradient.chunk(9, dim=-1)
        total = gradient.new_zeros(size + 2, size + 2, *parts[0].shape[2:])
        for index, part in enumerate(parts):
            row, column = divmod(index, 3)
            total[row : row + size, column : column + size] += part
        return total


class CifarNet(nn.Module):
    """A CIFAR-10 net. Input: float [n, 3, size, size], RGB 0-255 with the mean subtracted.

    `norms` adds normalization after pool1 and before pool2, as in the 11pct net.
    """

    def __init__(
        self, name: NetName, *, norms: bool = False, neuron: Neuron = "relu", classes: int = 10, size: int = IMAGE_SIZE
    ) -> None:
        """Build the net with torch's initial weights. Raises ValueError for an unknown name, and for norms in 18pct."""
        super().__init__()
        if name not in get_args(NetName) or (name == "18pct" and norms):
            raise ValueError(f"Unknown net: {name!r}, norms={norms}. Use 18pct without norms, or 13pct or 11pct.")
        if name == "18pct":
            layers, maps = _layers_18pct(neuron), 64 * (size // 8) ** 2
        else:
            layers, maps = _layers_13pct(64 if name == "11pct" else 32, neuron, size // 4), 32 * (size // 4) ** 2
        self.layers = nn.Sequential(
            OrderedDict((key, layer) for key, layer in layers.items() if norms or not key.startswith("norm"))
        )
        self.fc10 = nn.Linear(maps, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float [n, classes]."""
        logits: Tensor = self.fc10(self.layers(x).flatten(1))
        return logits


def _layers_18pct(neuron: Neuron) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, 32, 5, padding=2),
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "act1": _activation(neuron),
        "conv2": nn.Conv2d(32, 32, 5, padding=2),
        "act2": _activation(neuron),
        "pool2": nn.AvgPool2d(3, 2, ceil_mode=True),
        "conv3": nn.Conv2d(32, 64, 5, padding=2),
        "act3": _activation(neuron),
        "pool3": nn.AvgPool2d(3, 2, ceil_mode=True),
    }


def _layers_13pct(kernels: int, neuron: Neuron, size: int) -> dict[str, nn.Module]:
    """Return the layers with `kernels` kernels in local3, whose maps have `size` x `size` positions."""
    return {
        "conv1": nn.Conv2d(3, 64, 5, padding=2),
        # In the original, pooling comes after the activation: the same values for four times the work.
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "act1": _activation(neuron),
        "norm1": LocalResponseNorm(64, size=9, alpha=_NORM_ALPHA, k=1.0),
        "conv2": nn.Conv2d(64, 64, 5, padding=2),
        "act2": _activation(neuron),
        "norm2": LocalResponseNorm(64, size=9, alpha=_NORM_ALPHA, k=1.0),
        "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
        "local3": LocallyConnected(64, kernels, size),
        "act3": _activation(neuron),
        "local4": LocallyConnected(kernels, 32, size),
        "act4": _activation(neuron),
    }


def _activation(neuron: Neuron) -> nn.Module:
    return nn.ReLU(inplace=True) if neuron == "relu" else nn.Tanh()


@torch.no_grad()
def initialize(net: CifarNet, generator: torch.Generator) -> None:
    """Draw normal weights with the deviations of the original tables, and set biases to 0."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | LocallyConnected):
            module.weight.normal_(0, _DEVIATIONS.get(name, 0.01), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
