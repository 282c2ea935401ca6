"""The four-layer CIFAR-10 nets of the paper's figure 1 and section 3.3, each built from one table of layers.

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

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.training.nets.alexnet import LocalResponseNorm

IMAGE_SIZE: Final = 32

NetName = Literal["18pct", "13pct", "11pct"]
Neuron = Literal["relu", "tanh"]

# The tables specify scale .001 for 9 maps, and the original divides it by the maps, so the formula's alpha is .001/9.
NORM_SIZE: Final = 9
NORM_ALPHA: Final = 0.001 / NORM_SIZE
NORM_K: Final = 1.0


@dataclass(frozen=True, slots=True)
class Conv:
    """A 5x5 convolution with padding 2, without its activation. `deviation`: of its initial weights."""

    name: str
    kernels: int
    deviation: float


@dataclass(frozen=True, slots=True)
class Local:
    """A 3x3 layer with padding 1 and separate kernels and biases at every position, without its activation.

    `decay`: weight decay.
    """

    name: str
    kernels: int
    deviation: float = 0.04
    decay: float = 0.004


@dataclass(frozen=True, slots=True)
class Norm:
    """Local response normalization over 9 maps (section 3.3), with the constants of the original 11pct net."""

    name: str


@dataclass(frozen=True, slots=True)
class Pool:
    """3x3 pooling with stride 2; the windows cover the whole image."""

    name: str
    kind: Literal["max", "average"]


@dataclass(frozen=True, slots=True)
class Activation:
    """The nonlinearity of the neurons."""

    name: str


Layer = Conv | Local | Norm | Pool | Activation


@dataclass(frozen=True, slots=True)
class Table:
    """The layers of a net before fc10, and the weight decay of fc10."""

    layers: tuple[Layer, ...]
    decay: float = 0.0


def table(name: NetName, *, norms: bool = False) -> Table:
    """Return the layers of a net. `norms` adds normalization after pool1 and before pool2, as in the 11pct net.

    Raises ValueError for an unknown name, and for norms in 18pct.
    """
    if name == "18pct" and not norms:
        return Table(
            (
                Conv("conv1", 32, 1e-4),
                Pool("pool1", "max"),
                Activation("act1"),
                Conv("conv2", 32, 0.01),
                Activation("act2"),
                Pool("pool2", "average"),
                Conv("conv3", 64, 0.01),
                Activation("act3"),
                Pool("pool3", "average"),
            )
        )
    if name not in get_args(NetName) or name == "18pct":
        raise ValueError(f"Unknown net: {name!r}, norms={norms}. Use 18pct without norms, or 13pct or 11pct.")
    layers: tuple[Layer | None, ...] = (
        Conv("conv1", 64, 1e-4),
        Pool("pool1", "max"),  # after the activation in the original: the same values for four times the work
        Activation("act1"),
        Norm("norm1") if norms else None,
        Conv("conv2", 64, 0.01),
        Activation("act2"),
        Norm("norm2") if norms else None,
        Pool("pool2", "max"),
        Local("local3", 64 if name == "11pct" else 32),
        Activation("act3"),
        Local("local4", 32),
        Activation("act4"),
    )
    return Table(tuple(layer for layer in layers if layer is not None), decay=0.01 if name == "11pct" else 0.004)


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
    """A net of `table`. Input: float [n, 3, size, size], RGB 0-255 with the mean subtracted."""

    def __init__(
        self, name: NetName, *, norms: bool = False, neuron: Neuron = "relu", classes: int = 10, size: int = IMAGE_SIZE
    ) -> None:
        super().__init__()
        self.table = table(name, norms=norms)
        channels = 3
        layers = nn.Sequential()
        for layer in self.table.layers:
            module: nn.Module
            match layer:
                case Conv():
                    module = nn.Conv2d(channels, layer.kernels, 5, padding=2)
                    channels = layer.kernels
                case Local():
                    module = LocallyConnected(channels, layer.kernels, size)
                    channels = layer.kernels
                case Norm():
                    module = LocalResponseNorm(channels, NORM_SIZE, NORM_ALPHA, NORM_K)
                case Pool():
                    module = (nn.MaxPool2d if layer.kind == "max" else nn.AvgPool2d)(3, 2, ceil_mode=True)
                    size = -(-(size - 3) // 2) + 1
                case Activation():
                    module = nn.ReLU(inplace=True) if neuron == "relu" else nn.Tanh()
            layers.add_module(layer.name, module)
        self.layers = layers
        self.fc10 = nn.Linear(channels * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float [n, classes]."""
        logits: Tensor = self.fc10(self.layers(x).flatten(1))
        return logits

    def decays(self) -> dict[str, float]:
        """Return the weight decay of the original tables by parameter name; parameters without decay are omitted."""
        decays = {f"layers.{layer.name}.weight": layer.decay for layer in self.table.layers if isinstance(layer, Local)}
        if self.table.decay:
            decays["fc10.weight"] = self.table.decay
        return decays


@torch.no_grad()
def initialize(net: CifarNet, generator: torch.Generator) -> None:
    """Draw normal weights with the deviations of the table (fc10: .01), and set biases to 0."""
    deviations = {
        f"layers.{layer.name}": layer.deviation for layer in net.table.layers if isinstance(layer, Conv | Local)
    }
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | LocallyConnected):
            module.weight.normal_(0, deviations.get(name, 0.01), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
