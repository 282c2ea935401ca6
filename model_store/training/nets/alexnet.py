"""The net of the 2012 paper, built from one table of layers, read in the paper's order.

Promises: at 1,000 classes exactly the paper's 60,965,224 parameters; local response normalisation by the paper's
literal formula; the original code's zero edge (224 is padded 3 right and 3 bottom); both forms of dropout; a plain-dict
form of the table (`Architecture.to_dict`) that runs and manifests keep, so that a net is rebuilt from data, not a name.
Does not: subtract the mean or prepare images (the caller hands pixels 0-255, mean subtracted), know about optimisers.
Source: the paper, sections 3 and 4.2; the released code, layers-145.cfg, for the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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
    """A convolution and its ReLU. `towers` 2: each half of the kernels sees half of the maps below (section 3.2)."""

    name: str
    kernels: int
    size: int
    stride: int = 1
    padding: int = 0
    edge: int = 0  # zeros on the right and at the bottom only
    towers: int = 1


@dataclass(frozen=True, slots=True)
class Norm:
    """Local response normalisation (section 3.3) with beta .75. `alpha` is the formula's: not divided by `size`."""

    name: str
    size: int = 5
    alpha: float = 1e-4
    k: float = 2.0
    towers: int = 1  # 2: neighbours within a tower only, as the original code has it


@dataclass(frozen=True, slots=True)
class Pool:
    """Max pooling (section 3.4: size 3, stride 2 overlap)."""

    name: str
    size: int = 3
    stride: int = 2
    edge: int = 0  # rows and columns of nothing on the right and at the bottom, where sizes round up (Caffe2)


@dataclass(frozen=True, slots=True)
class Hidden:
    """A fully-connected layer, its ReLU and its dropout (section 4.2)."""

    name: str
    neurons: int


Layer = Conv | Norm | Pool | Hidden
_KINDS: Final[Mapping[str, type[Conv] | type[Norm] | type[Pool] | type[Hidden]]] = {
    "conv": Conv,
    "norm": Norm,
    "pool": Pool,
    "hidden": Hidden,
}

# Section 3.5, first layer to last; fc8 follows from the number of classes.
PAPER_LAYERS: Final[tuple[Layer, ...]] = (
    Conv("conv1", 96, 11, stride=4, edge=3),
    Norm("norm1"),
    Pool("pool1"),
    Conv("conv2", 256, 5, padding=2, towers=2),
    Norm("norm2"),
    Pool("pool2"),
    Conv("conv3", 384, 3, padding=1),
    Conv("conv4", 384, 3, padding=1, towers=2),
    Conv("conv5", 256, 3, padding=1, towers=2),
    Pool("pool5"),
    Hidden("fc6", 4096),
    Hidden("fc7", 4096),
)


@dataclass(frozen=True, slots=True)
class MapSize:
    """What a layer puts out: `channels` maps of `size` x `size` (1 for fully-connected layers)."""

    name: str
    channels: int
    size: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that it takes to build a net: the table of layers, the classes, the dropout's form, the input's factor.

    dropout: "paper" masks in training and halves at test; "inverted" doubles in training and does nothing at test
    (torch's); "none" has no dropout (a net whose halves are folded into its weights).
    input_scale: factor on the mean-subtracted pixels; the paper's is 1.
    """

    classes: int
    layers: tuple[Layer, ...] = field(default=PAPER_LAYERS)
    dropout: Dropout = "paper"
    input_scale: float = 1.0
    name: str = "alexnet"

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON types; `from_dict` gives an equal Architecture back."""
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        layers = [{"kind": kinds[type(layer)], **asdict(layer)} for layer in self.layers]
        return {
            "name": self.name,
            "classes": self.classes,
            "dropout": self.dropout,
            "input_scale": self.input_scale,
            "layers": layers,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Build from `to_dict`'s form. Raises CheckpointError when a key is missing, unknown or of the wrong kind."""
        try:
            layers = []
            for entry in values["layers"]:
                options = dict(entry)
                layers.append(_KINDS[options.pop("kind")](**options))
            rest = {key: value for key, value in values.items() if key != "layers"}
            architecture = cls(layers=tuple(layers), **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"this is no architecture that fc7 can build: {error!r} in {str(values)[:200]}"
            ) from error
        if architecture.dropout not in get_args(Dropout) or architecture.classes < 1:
            raise CheckpointError(
                f"an architecture needs classes >= 1 and dropout one of {', '.join(get_args(Dropout))}; "
                f"it has classes={architecture.classes!r}, dropout={architecture.dropout!r}"
            )
        return architecture

    def scaled(self, width: float) -> Architecture:
        """Return the same net with `width` times the kernels and neurons, at least 8 a layer: for trials and tests."""
        if width == 1:
            return self

        def scale(count: int) -> int:
            return max(8, 2 * round(count * width / 2))

        layers = tuple(
            replace(layer, kernels=scale(layer.kernels))
            if isinstance(layer, Conv)
            else replace(layer, neurons=scale(layer.neurons))
            if isinstance(layer, Hidden)
            else layer
            for layer in self.layers
        )
        return replace(self, layers=layers)

    def readers_of_dropped(self) -> tuple[str, ...]:
        """Return the layers that read a layer with dropout, in order: fc7 and fc8 in the paper's net."""
        hidden = [layer.name for layer in self.layers if isinstance(layer, Hidden)]
        return (*hidden[1:], "fc8") if hidden else ()

    def maps(self) -> tuple[MapSize, ...]:
        """Return what every layer puts out for a 224x224 picture, in order, fc8 included."""
        channels, size, out = 3, INPUT_SIZE, []
        for layer in self.layers:
            match layer:
                case Conv():
                    channels = layer.kernels
                    size = (size + layer.edge + 2 * layer.padding - layer.size) // layer.stride + 1
                case Pool():
                    size = (size + layer.edge - layer.size) // layer.stride + 1
                case Hidden():
                    channels, size = layer.neurons, 1
            out.append(MapSize(layer.name, channels, size))
        return (*out, MapSize("fc8", self.classes, 1))


class LocalResponseNorm(nn.Module):
    """b = a / (k + alpha * sum of a^2 over `size` neighbouring maps)^.75, by the paper's literal formula (section 3.3).

    Takes and returns float [n, channels, height, width]. The sum is a 1x1 convolution of the squares with a banded
    matrix and k as its bias, and the power is two square roots: exact, and several times faster than torch's module,
    in the exported graph too.
    """

    band: Tensor
    bias: Tensor

    def __init__(self, channels: int, size: int = 5, alpha: float = 1e-4, k: float = 2.0, towers: int = 1) -> None:
        super().__init__()
        index = torch.arange(channels)
        near = (index[:, None] - index[None, :]).abs() <= size // 2
        tower = index * towers // channels
        band = (near & (tower[:, None] == tower[None, :])).float() * alpha
        # Constants of the table, so they are not part of the weights.
        self.register_buffer("band", band[:, :, None, None], persistent=False)
        self.register_buffer("bias", torch.full((channels,), k), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps, of the shape of `x`."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, _Normalise.apply(x, self.band, self.bias))  # type: ignore[no-untyped-call]
        scale = functional.conv2d(x * x, self.band, self.bias)
        root = torch.sqrt(scale)
        return x / (root * torch.sqrt(root))


class _Normalise(torch.autograd.Function):
    """The same normalisation with its derivative by hand: half of the passes over memory that autograd would make.

    With s = k + band x^2 and y = x s^-.75: dx = g s^-.75 - 1.5 x band^T(g y / s).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, bias: Tensor) -> Tensor:
        """Return x s^-.75, in the precision of `x`."""
        band, bias = band.to(x.dtype), bias.to(x.dtype)
        scale = functional.conv2d(x * x, band, bias)
        factor = torch.rsqrt(scale)
        factor.mul_(torch.sqrt(factor))
        y = x * factor
        ctx.save_for_backward(x, scale, factor, y, band)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return dx and nothing for the constants."""
        x, scale, factor, y, band = ctx.saved_tensors
        (gradient,) = gradients
        through = functional.conv2d((gradient * y).div_(scale), 1.5 * band.transpose(0, 1))
        return (gradient * factor).addcmul_(x, through, value=-1), None, None


class AlexNet(nn.Module):
    """The net of an `Architecture`. Input float32 [n, 3, 224, 224]: RGB 0-255, mean subtracted.

    Weights are named `conv1.weight`, `conv1.bias`, ... `fc8.bias`, shaped as in the paper: those of a layer with two
    towers see half of the maps.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        # (first row, rows in all) of the batch at hand, when other processes have the rest of it.
        self.rows: tuple[int, int] | None = None
        below, size = 3, INPUT_SIZE
        for layer, out in zip(architecture.layers, architecture.maps(), strict=False):
            self.add_module(layer.name, _module(layer, below if not isinstance(layer, Hidden) else below * size * size))
            below, size = out.channels, out.size
        self.fc8 = nn.Linear(below * size * size, architecture.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float [n, classes]."""
        return self.forward_both(x)[0]

    def features_fc7(self, x: Tensor) -> Tensor:
        """Return the last hidden layer after ReLU, before dropout, float [n, 4096]: the retrieval feature (6.1)."""
        return self.forward_both(x)[1]

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits [n, classes], fc7 [n, 4096]) in one pass."""
        features, first = x, True
        for layer in self.architecture.layers:
            module = self.get_submodule(layer.name)
            match layer:
                case Conv():
                    x = self._seen_by(layer.name, x)
                    if layer.edge:
                        x = functional.pad(x, (0, layer.edge, 0, layer.edge))
                    weight = cast(Tensor, module.weight)
                    if first and self.architecture.input_scale != 1:
                        weight = (
                            weight * self.architecture.input_scale
                        )  # as scaling the pixels, in a fraction of the time
                    bias = cast(Tensor, module.bias)
                    x = functional.conv2d(x, weight, bias, layer.stride, layer.padding, 1, layer.towers).relu_()
                    first = False
                case Pool():
                    if layer.edge:
                        x = functional.pad(x, (0, layer.edge, 0, layer.edge), value=-torch.inf)
                    x = module(x)
                case Norm():
                    x = module(x)
                case Hidden():
                    features = functional.relu(module(self._seen_by(layer.name, x.flatten(1))))
                    x = self._dropout(features)
        return self._classify(x.flatten(1)), features

    def _seen_by(self, layer: str, x: Tensor) -> Tensor:  # noqa: ARG002 (a tower's net looks up what it must fetch)
        """Return what the layer sees: all that the one below put out."""
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
        """Return ones and zeros for `x`: drawn for the whole batch, however many processes share it."""
        first, count = self.rows or (0, len(x))
        return x.new_empty((count, x.shape[1])).bernoulli_(1 - DROPOUT_RATE)[first : first + len(x)]

    @torch.no_grad()
    def folded(self) -> AlexNet:
        """Return a copy for inference that answers the same without dropout: the paper's halves are in its weights.

        fc7 stays the feature before dropout; only the weights that read a dropped layer are halved (not the biases).
        """
        net = AlexNet(replace(self.architecture, dropout="none"))
        net.load_state_dict(self.state_dict())
        if self.architecture.dropout == "paper":
            for reader in self.architecture.readers_of_dropped():
                net.get_parameter(f"{reader}.weight").mul_(1 - DROPOUT_RATE)
        return net.eval()

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of weights and biases of each learned layer, in order."""
        counts = {name: sum(p.numel() for p in module.parameters()) for name, module in self.named_children()}
        return {name: count for name, count in counts.items() if count}


def _module(layer: Layer, below: int) -> nn.Module:
    match layer:
        case Conv():
            return nn.Conv2d(below, layer.kernels, layer.size, layer.stride, layer.padding, groups=layer.towers)
        case Norm():
            return LocalResponseNorm(below, layer.size, layer.alpha, layer.k, layer.towers)
        case Pool():
            return nn.MaxPool2d(layer.size, layer.stride)
        case Hidden():
            return nn.Linear(below, layer.neurons)


# Section 5: these layers' biases begin at 1, so that their ReLUs begin with positive inputs.
_ONES: Final = frozenset({"conv2", "conv4", "conv5", "fc6", "fc7"})
# layers-145.cfg begins the upper convolutions wider than the text says.
_WIDER: Final = frozenset({"conv3", "conv4", "conv5"})


@torch.no_grad()
def initialise(net: AlexNet, scheme: Initialisation, generator: torch.Generator) -> None:
    """Draw all weights anew from `generator`.

    "paper": N(0, .01), biases 1 in conv2, conv4, conv5, fc6, fc7 and else 0 (section 5). "original": the same, but .03
    in conv3-5 (layers-145.cfg). "he": variance 2 / inputs and biases 0, for small data, which hardly leave the paper's
    plateau; fc8 has .01, so that the first loss is near ln(classes).
    """
    for name, module in net.named_children():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        inputs = module.weight[0].numel()
        if scheme == "he":
            deviation = 0.01 if name == "fc8" else (2 / inputs) ** 0.5
        else:
            deviation = 0.03 if scheme == "original" and name in _WIDER else 0.01
        module.weight.normal_(0, deviation, generator=generator)
        if module.bias is not None:
            module.bias.fill_(1.0 if scheme != "he" and name in _ONES else 0.0)
