"""A trained net as an ONNX graph, layer by layer, with its tensors in a file beside it.

Promises: input `pixels` uint8 [N, 224, 224, 3] RGB; outputs `probabilities` float32 [N, classes] and `fc7` float32 [N,
neurons]: the last hidden layer after its ReLU and before dropout; N is free. Every operator is one that ONNX Runtime
fuses or blocks well: no Pow, no LRN, no padding of its own.
Does not: fold dropout's halves (the net does), write the graph itself.
Source: ONNX operator set 17, the oldest with all that is used here; the paper, sections 3 and 4.2, for the layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import CheckpointError
from model_store.image import CROP
from model_store.training.nets.alexnet import (
    FEATURES,
    AlexNet,
    Architecture,
    Conv,
    Hidden,
    LocalResponseNorm,
    MapSize,
    Norm,
    Pool,
)

OPSET: Final = 17
IR_VERSION: Final = 8  # the one that came with operator set 17
PRODUCER: Final = "fc7"
PIXELS: Final = "pixels"
PROBABILITIES: Final = "probabilities"
_ALIGNMENT: Final = 4096  # whole pages, so that a runtime may map the file instead of reading it
# ONNX Runtime's pooling adds rows up in a buffer of so many values, and longer ones in a loop ten times slower.
_POOLED: Final = 2560


class Graph:
    """The graph while it is built: its nodes in order, and its tensors, whose values are in files already."""

    def __init__(
        self, net: AlexNet, weights: BinaryIO, location: str, others: Mapping[str, onnx.TensorProto] | None = None
    ) -> None:
        """Values go to `weights`, a file that the graph knows as `location`; `others` are in another already."""
        self.net, self.weights, self.location = net, weights, location
        self.others = others or {}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.scaled_layer = scaled_layer(net.architecture)

    def build(self, mean: NDArray[np.float32]) -> onnx.ModelProto:
        """Return the model; `mean` is float32 [224, 224, 3]."""
        layers = self.net.architecture.layers
        last_hidden = next((layer.name for layer in reversed(layers) if isinstance(layer, Hidden)), None)
        if last_hidden is None:
            raise CheckpointError("this net has no hidden fully-connected layer, so there is no fc7 to serve")
        x = self.pixels(mean)
        flat = False
        for layer, maps in zip(layers, self.net.architecture.maps(), strict=False):
            match layer:
                case Conv():
                    x = self.convolution(layer, x, maps)
                case Norm():
                    x = self.normalisation(layer, x, maps)
                case Pool():
                    x = self.node(
                        "MaxPool",
                        [x],
                        layer.name,
                        kernel_shape=_pair(layer.size),
                        strides=_pair(layer.stride),
                        pads=[0, 0, layer.edge, layer.edge],
                    )
                case Hidden():
                    x = x if flat else self.node("Flatten", [x], "flat")
                    flat = True
                    x = self.linear(layer.name, x)
                    x = self.node("Relu", [x], FEATURES if layer.name == last_hidden else layer.name)
        self.node("Softmax", [self.linear("fc8", x)], PROBABILITIES, axis=1)
        return self.model()

    def pixels(self, mean: NDArray[np.float32]) -> str:
        """Bytes, channels last -> mean-subtracted floats, channels first. Transposed while still one byte a value."""
        x = self.node("Transpose", [PIXELS], "planes", perm=[0, 3, 1, 2])
        x = self.node("Cast", [x], "floats", to=TensorProto.FLOAT)
        x = self.node("Sub", [x, self.tensor("mean", mean.transpose(2, 0, 1)[None])], "centred")
        scale = self.net.architecture.input_scale
        if scale == 1 or self.scaled_layer:
            return x
        return self.node("Mul", [x, self.tensor("input_scale", np.array(scale))], "scaled")

    def convolution(self, layer: Conv, x: str, maps: MapSize) -> str:
        """A convolution and its ReLU. The edge of zeros (the mean colour, by now) is the convolution's own padding."""
        del maps  # what it puts out; other ways to compute it want to know
        pad, far = layer.padding, layer.padding + layer.edge
        x = self.node(
            "Conv",
            [x, *self.parameters(layer.name)],
            f"{layer.name}.linear",
            kernel_shape=_pair(layer.size),
            strides=_pair(layer.stride),
            pads=[pad, pad, far, far],
            group=layer.towers,
        )
        return self.node("Relu", [x], layer.name)

    def normalisation(self, layer: Norm, x: str, maps: MapSize) -> str:
        """The norm's formula: the sum over neighbours as an average or a convolution, the power as two square roots."""
        if maps.size**2 > _POOLED:
            squares = self.node("Mul", [x, x], f"{layer.name}.squares")
            return self.normalised(layer.name, x, self.banded(layer.name, squares))
        # Maps as rows of a picture for each tower, whose columns of `span` rows are averaged. Turned into rows before
        # they are squared: one change of layout instead of two.
        span = 2 * (layer.size // 2) + 1
        rows = [0, layer.towers, maps.channels // layer.towers, maps.size**2]
        x = self.reshaped(x, rows, f"{layer.name}.rows")
        squares = self.node("Mul", [x, x], f"{layer.name}.squares")
        mean = self.node(
            "AveragePool",
            [squares],
            f"{layer.name}.mean",
            kernel_shape=[span, 1],
            pads=[span // 2, 0, span // 2, 0],
            count_include_pad=1,
        )
        alpha = self.tensor(f"{layer.name}.alpha", np.array(span * layer.alpha))
        k = self.tensor(f"{layer.name}.k", np.array(layer.k))
        scale = self.node("Add", [self.node("Mul", [mean, alpha], f"{layer.name}.sum"), k], f"{layer.name}.scale")
        y = self.normalised(f"{layer.name}.normalised", x, scale)
        return self.reshaped(y, [0, maps.channels, maps.size, maps.size], layer.name)

    def banded(self, name: str, squares: str) -> str:
        """k + alpha * the sum over neighbours, as network.py has it: a 1x1 convolution with a banded matrix."""
        norm = self.net.get_submodule(name)
        if not isinstance(norm, LocalResponseNorm):  # pragma: no cover
            raise TypeError(f"{name} is a {type(norm).__name__}")
        band = self.tensor(f"{name}.band", norm.band.numpy())
        k = self.tensor(f"{name}.k", norm.bias.numpy())
        return self.node("Conv", [squares, band, k], f"{name}.scale", kernel_shape=_pair(1))

    def normalised(self, name: str, x: str, scale: str) -> str:
        """x / scale^.75."""
        root = self.node("Sqrt", [scale], f"{name}.root")
        fourth_root = self.node("Sqrt", [root], f"{name}.fourth_root")
        return self.node("Div", [x, self.node("Mul", [root, fourth_root], f"{name}.power")], name)

    def linear(self, name: str, x: str) -> str:
        """A fully-connected layer. The weights stay [out, in], as trained: the runtime packs them when it loads."""
        return self.node("Gemm", [x, *self.parameters(name)], f"{name}.linear", transB=1)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node named as its one output, which is returned."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def reshaped(self, x: str, shape: list[int], output: str) -> str:
        """Append a Reshape; 0 keeps a dimension, -1 is what is left."""
        # Inside the graph: shapes are inferred from it, also where the weights are not at hand.
        self.tensors.append(numpy_helper.from_array(np.array(shape, np.int64), f"{output}.shape"))
        return self.node("Reshape", [x, f"{output}.shape"], output)

    def parameters(self, name: str) -> list[str]:
        """Add weight and bias of the net's layer `name`, under the net's names for them."""
        weight, bias = (self.net.get_parameter(f"{name}.{kind}").detach().numpy() for kind in ("weight", "bias"))
        if name == self.scaled_layer:
            weight = weight * np.float32(self.net.architecture.input_scale)
        return [self.tensor(f"{name}.weight", weight), self.tensor(f"{name}.bias", bias)]

    def tensor(self, name: str, values: NDArray[np.floating[Any]]) -> str:
        """Write `values` as float32, little-endian, unless they are in a file; return the name that refers to them."""
        if name in self.others:
            self.tensors.append(self.others[name])
            return name
        self.weights.write(bytes(-self.weights.tell() % _ALIGNMENT))
        offset = self.weights.tell()
        self.weights.write(np.ascontiguousarray(values, dtype="<f4").data)
        tensor = TensorProto(
            name=name, dims=values.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", self.location), ("offset", offset), ("length", self.weights.tell() - offset)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def model(self) -> onnx.ModelProto:
        """Put nodes, tensors, input and outputs together."""
        classes = self.net.architecture.classes
        neurons = self.net.fc8.in_features
        graph = helper.make_graph(
            self.nodes,
            self.net.architecture.name,
            inputs=[helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["N", CROP, CROP, 3])],
            outputs=[
                helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["N", classes]),
                helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", neurons]),
            ],
            initializer=self.tensors,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
            producer_version=version("fc7"),
        )


def scaled_layer(architecture: Architecture) -> str | None:
    """Return the first convolution when the input's factor can move into its weights exactly: a power of two."""
    first = architecture.layers[0]
    return first.name if isinstance(first, Conv) and math.frexp(architecture.input_scale)[0] == 0.5 else None


def _pair(value: int) -> list[int]:
    return [value, value]
