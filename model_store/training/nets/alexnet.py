"""The net of the 2012 paper, built from a table of layers. The layers come in the same order as in the paper.

Guarantees: exactly 60,965,224 parameters with 1,000 classes, as in the paper. Local response normalization uses the
paper's literal formula. The input is padded with 3 zeros on the right and at the bottom, as in the original code. Runs
and manifests store the table (`Architecture.to_dict`), so a net can be rebuilt without knowing its name.
Out of scope: preparing images and subtracting the mean (the input is pixels from 0 to 255 minus the mean), training.
References: the paper, sections 3, 4.2 and 5; the original code (layers-145.cfg) for the padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.errors import CheckpointError

INPUT_SIZE: Final = 224
FEATURES: Final = "fc7"
DROPOUT_RATE: Final = 0.5

Dropout = Literal["paper", "inverted", "none"]
Initialisation = Literal["paper", "original", "he"]


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with ReLU (section 3.1). With 2 towers, half of the kernels read half of the maps (section 3.2)."""

    name: str
    kernels: int
    size: int
    stride: int = 1
    padding: int = 0
    edge: int = 0  # zeros added on the right and at the bottom only
    towers: int = 1
    relu: bool = True  # False: a later layer applies it, as in files of cuda-convnet


@dataclass(frozen=True, slots=True)
class Norm:
    """Local response normalization (section 3.3) with beta 0.75. `alpha` is the paper's, not divided by `size`.

    within: the sum is over `size` x `size` positions of the same map, instead of over `size` maps, as in a second
    normalization of the original code.
    """

    name: str
    size: int = 5
    alpha: float = 1e-4
    k: float = 2.0
    towers: int = 1  # 2: neighboring maps within a tower only, as in the original code
    within: bool = False
    relu: bool = False  # apply the ReLU here, if the convolution does not


@dataclass(frozen=True, slots=True)
class Pool:
    """Overlapping max pooling (section 3.4)."""

    name: str
    size: int = 3
    stride: int = 2
    edge: int = 0  # padding on the right and at the bottom, for files whose sizes round up (Caffe2)


@dataclass(frozen=True, slots=True)
class Hidden:
    """A fully-connected layer with its ReLU and dropout (section 4.2)."""

    name: str
    neurons: int


Layer = Conv | Norm | Pool | Hidden
_KINDS: Final[Mapping[str, type[Layer]]] = {"conv": Conv, "norm": Norm, "pool": Pool, "hidden": Hidden}

# Section 3.5 and figure 2. The comments give the shape of each output. fc8 is added for the number of classes.
PAPER_LAYERS: Final[tuple[Layer, ...]] = (
    #                                                3 x 224 x 224  input: RGB
    Conv("conv1", 96, 11, stride=4, edge=3),  #     96 x 55 x 55
    Norm("norm1"),  #                               96 x 55 x 55    section 3.3
    Pool("pool1"),  #                               96 x 27 x 27    section 3.4
    Conv("conv2", 256, 5, padding=2, towers=2),  # 256 x 27 x 27    section 3.2: two towers of 128 kernels
    Norm("norm2"),  #                              256 x 27 x 27
    Pool("pool2"),  #                              256 x 13 x 13
    Conv("conv3", 384, 3, padding=1),  #           384 x 13 x 13    reads the maps of both towers
    Conv("conv4", 384, 3, padding=1, towers=2),  # 384 x 13 x 13
    Conv("conv5", 256, 3, padding=1, towers=2),  # 256 x 13 x 13
    Pool("pool5"),  #                              256 x 6 x 6
    Hidden("fc6", 4096),  #                        4096             section 4.2: dropout
    Hidden("fc7", 4096),  #                        4096             dropout; the features of section 6.1
)


@dataclass(frozen=True, slots=True)
class MapSize:
    """The output of a layer: `channels` maps of `size` x `size` (1 for fully-connected layers)."""

    name: str
    channels: int
    size: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything needed to build a net: the table of layers, the number of classes, dropout and input scale.

    dropout: "paper" halves the outputs at inference. "inverted" doubles them in training instead, as torch does.
    "none" has no dropout, for a net whose factors are folded into its weights.
    input_scale: factor on the mean-subtracted pixels. The paper's is 1.
    """

    classes: int
    layers: tuple[Layer, ...] = PAPER_LAYERS
    dropout: Dropout = "paper"
    input_scale: float = 1.0
    name: str = "alexnet"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, for `from_dict`."""
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        layers = [{"kind": kinds[type(layer)], **asdict(layer)} for layer in self.layers]
        return asdict(self) | {"layers": layers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Build from the result of `to_dict`. Raises CheckpointError if it is not valid."""
        try:
            layers = []
            for entry in values["layers"]:
                options = dict(entry)
                layers.append(_KINDS[options.pop("kind")](**options))
            architecture = cls(**{**values, "layers": tuple(layers)})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The architecture is not valid: {error!r} in {str(values)[:200]}.") from error
        if architecture.dropout not in get_args(Dropout) or architecture.classes < 1:
            raise CheckpointError(
                f"The architecture is not valid: classes={architecture.classes!r} must be at least 1, and "
                f"dropout={architecture.dropout!r} must be one of {', '.join(get_args(Dropout))}."
            )
        return architecture

    @property
    def features(self) -> int:
        """The number of values of fc7: the inputs of the last layer."""
        return self.maps()[-2].channels

    def scaled(self, width: float) -> Architecture:
        """Return the net with `width` times the kernels and neurons (at least 8 per layer), for tests and trials."""

        def scale(layer: Layer) -> Layer:
            match layer:
                case Conv():
                    return replace(layer, kernels=max(8, 2 * round(layer.kernels * width / 2)))
                case Hidden():
                    return replace(layer, neurons=max(8, 2 * round(layer.neurons * width / 2)))
            return layer

        return self if width == 1 else replace(self, layers=tuple(scale(layer) for layer in self.layers))

    def layers_after_dropout(self) -> tuple[str, ...]:
        """Return the layers whose input has dropout, in order: fc7 and fc8 in the paper's net."""
        hidden = [layer.name for layer in self.layers if isinstance(layer, Hidden)]
        return (*hidden[1:], "fc8") if hidden else ()

    def maps(self) -> tuple[MapSize, ...]:
        """Return the output of every layer for a 224x224 image, in order, including fc8."""
        channels, size, outputs = 3, INPUT_SIZE, []
        for layer in self.layers:
            match layer:
                case Conv():
                    channels = layer.kernels
                    size = (size + layer.edge + 2 * layer.padding - layer.size) // layer.stride + 1
                case Pool():
                    size = (size + layer.edge - layer.size) // layer.stride + 1
                case Hidden():
                    channels, size = layer.neurons, 1
            outputs.append(MapSize(layer.name, channels, size))
        return (*outputs, MapSize("fc8", self.classes, 1))


class LocalResponseNorm(nn.Module):
    """b = a / (k + alpha * sum of a^2 over `size` neighboring maps)^0.75, the formula of section 3.3.

    Input and output are float [n, channels, height, width]. The sum is computed as a 1x1 convolution of the squares
    with a banded matrix and bias k, and the power as two square roots. This is exact, and several times faster than
    torch's module, also in the exported graph.
    """

    band: Tensor
    bias: Tensor

    def __init__(self, channels: int, size: int = 5, alpha: float = 1e-4, k: float = 2.0, towers: int = 1) -> None:
        super().__init__()
        index = torch.arange(channels)
        near = (index[:, None] - index[None, :]).abs() <= size // 2
        tower = index * towers // channels
        band = (near & (tower[:, None] == tower[None, :])).float() * alpha
        # Not persistent, because they follow from the table and are not weights.
        self.register_buffer("band", band[:, :, None, None], persistent=False)
        self.register_buffer("bias", torch.full((channels,), k), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized maps, in the shape of `x`."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, _Normalize.apply(x, self.band, self.bias))  # type: ignore[no-untyped-call]
        scale = functional.conv2d(x * x, self.band, self.bias)
        root = torch.sqrt(scale)
        return x / (root * torch.sqrt(root))


class SpatialResponseNorm(nn.Module):
    """The same with the sum over a window of each map; positions outside of the map are zero."""

    def __init__(self, size: int, alpha: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.k = size, alpha, k

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized maps, in the shape of `x`."""
        mean = functional.avg_pool2d(x * x, self.size, 1, self.size // 2)
        root = torch.sqrt(self.k + self.alpha * self.size**2 * mean)
        return x / (root * torch.sqrt(root))


class _Normalize(torch.autograd.Function):
    """The normalization with a hand-written derivative, which needs half of the passes over memory that autograd needs.

    With s = k + band x^2 and y = x s^-0.75, the gradient is dx = g s^-0.75 - 1.5 x band^T(g y / s).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, bias: Tensor) -> Tensor:
        """Return x s^-0.75, in the precision of `x`."""
        band, bias = band.to(x.dtype), bias.to(x.dtype)
        scale = functional.conv2d(x * x, band, bias)
        factor = torch.rsqrt(scale)
        factor.mul_(torch.sqrt(factor))
        y = x * factor
        ctx.save_for_backward(x, scale, factor, y, band)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return dx, and None for the constants."""
        x, scale, factor, y, band = ctx.saved_tensors
        (gradient,) = gradients
        through = functional.conv2d((gradient * y).div_(scale), 1.5 * band.transpose(0, 1))
        return (gradient * factor).addcmul_(x, through, value=-1), None, None


class AlexNet(nn.Module):
    """The net of an `Architecture`. Input float32 [n, 3, 224, 224]: RGB 0-255, mean subtracted.

    The weights are named `conv1.weight`, `conv1.bias`, ... `fc8.bias`. In a layer with two towers, each kernel has the
    weights for half of the input maps.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        # (first row, number of rows in the batch), if other processes have the rest of the batch.
        self.batch_rows: tuple[int, int] | None = None
        channels, size = 3, INPUT_SIZE
        for layer, output in zip(architecture.layers, architecture.maps(), strict=False):
            self.add_module(
                layer.name, build_module(layer, channels * size**2 if isinstance(layer, Hidden) else channels)
            )
            channels, size = output.channels, output.size
        self.fc8 = nn.Linear(channels * size**2, architecture.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float [n, classes]."""
        return self.forward_both(x)[0]

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits [n, classes], fc7 [n, 4096]). fc7 is taken after ReLU and before dropout (section 6.1)."""
        features, first = x, True
        for layer in self.architecture.layers:
            module = self.get_submodule(layer.name)
            match layer:
                case Conv():
                    x = self._layer_input(layer.name, x)
                    if layer.edge:
                        x = functional.pad(x, (0, layer.edge, 0, layer.edge))
                    weight = cast(Tensor, module.weight)
                    if first and self.architecture.input_scale != 1:
                        weight = weight * self.architecture.input_scale  # equals scaling the pixels, but is faster
                    bias = cast(Tensor, module.bias)
                    x = functional.conv2d(x, weight, bias, layer.stride, layer.padding, 1, layer.towers)
                    x = x.relu_() if layer.relu else x
                    first = False
                case Pool():
                    if layer.edge:
                        x = functional.pad(x, (0, layer.edge, 0, layer.edge), value=-torch.inf)
                    x = module(x)
                case Norm():
                    x = module(x)
                    x = x.relu() if layer.relu else x
                case Hidden():
                    features = functional.relu(module(self._layer_input(layer.name, x.flatten(1))))
                    x = self._dropout(features)
        return self._classify(x.flatten(1)), features

    def _layer_input(self, layer: str, x: Tensor) -> Tensor:  # noqa: ARG002 (used by TowerNet)
        """Return the input of a layer: `x`, the output of the previous layer. TowerNet adds the other tower's."""
        return x

    def _classify(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc8(x))

    def _dropout(self, x: Tensor) -> Tensor:
        match self.architecture.dropout:
            case "paper" if self.training:
                return x * self._mask(x)
            case "paper":
                return x * (1 - DROPOUT_RATE)
            case "inverted":
                return x * self._mask(x).div_(1 - DROPOUT_RATE) if self.training else x
        return x

    def _mask(self, x: Tensor) -> Tensor:
        """Return a mask of ones and zeros for `x`. It is drawn for the whole batch, even if processes share it."""
        first, count = self.batch_rows or (0, len(x))
        return x.new_empty((count, x.shape[1])).bernoulli_(1 - DROPOUT_RATE)[first : first + len(x)]

    @torch.no_grad()
    def folded(self) -> AlexNet:
        """Return a copy for inference, without dropout, that gives the same outputs.

        The paper's factor of one half is multiplied into the weights (not the biases) of the layers after dropout.
        """
        net = AlexNet(replace(self.architecture, dropout="none"))
        net.load_state_dict(self.state_dict())
        if self.architecture.dropout == "paper":
            for name in self.architecture.layers_after_dropout():
                net.get_parameter(f"{name}.weight").mul_(1 - DROPOUT_RATE)
        return net.eval()

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of weights and biases of each layer that has any, in order."""
        counts = {name: sum(p.numel() for p in module.parameters()) for name, module in self.named_children()}
        return {name: count for name, count in counts.items() if count}


def build_module(layer: Layer, inputs: int) -> nn.Module:
    """Return the module of a layer, for `inputs` maps or neurons."""
    match layer:
        case Conv():
            return nn.Conv2d(inputs, layer.kernels, layer.size, layer.stride, layer.padding, groups=layer.towers)
        case Norm(within=True):
            return SpatialResponseNorm(layer.size, layer.alpha, layer.k)
        case Norm():
            return LocalResponseNorm(inputs, layer.size, layer.alpha, layer.k, layer.towers)
        case Pool():
            return nn.MaxPool2d(layer.size, layer.stride)
        case Hidden():
            return nn.Linear(inputs, layer.neurons)


@torch.no_grad()
def initialise(net: AlexNet, scheme: Initialisation, generator: torch.Generator) -> None:
    """Draw initial weights from `generator`.

    "paper": N(0, 0.01); biases are 1 in conv2, conv4, conv5, fc6 and fc7, otherwise 0 (section 5).
    "original": the same, but N(0, 0.03) in conv3 to conv5 (layers-145.cfg).
    "he": variance 2 / inputs and biases 0, for small data sets, on which the paper's initialization hardly learns. fc8
    has deviation 0.01, so that the first loss is near ln(classes).
    """
    for name, module in net.named_children():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        inputs = module.weight[0].numel()
        if scheme == "he":
            deviation = 0.01 if name == "fc8" else (2 / inputs) ** 0.5
        else:
            deviation = 0.03 if scheme == "original" and name in ("conv3", "conv4", "conv5") else 0.01
        module.weight.normal_(0, deviation, generator=generator)
        if module.bias is not None:
            # Biases of 1 give the ReLUs positive inputs at first.
            module.bias.fill_(1.0 if scheme != "he" and name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0)
