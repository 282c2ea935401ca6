"""Build the ONNX graph of an AlexNet, layer by layer, and write its tensors to an external data file.

Guarantees: the input is `pixels`, uint8 [N, 224, 224, 3] RGB. The outputs are `probabilities`, float32 [N, classes],
and `fc7`, float32 [N, neurons]: the last hidden layer after its ReLU and before dropout. The batch size N is dynamic.
The graph has only operators that the engines execute fast on a CPU; Pow, LRN and Pad are avoided.
Out of scope: folding dropout into the weights (`AlexNet.folded` does it); saving the graph (served_graph.py does it).
References: ONNX operator set 17, the oldest with all operators used here; the paper, sections 3 and 4.2.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import CheckpointError
from model_store.image import CROP
from model_store.training.nets.alexnet import FEATURES, AlexNet, Architecture, Conv, Hidden, MapSize, Norm, Pool

OPSET: Final = 17
IR_VERSION: Final = 8  # released with operator set 17
PRODUCER: Final = "fc7"
PIXELS: Final = "pixels"
PROBABILITIES: Final = "probabilities"
_ALIGNMENT: Final = 4096  # a memory page, so that a runtime can map the file instead of reading it
# ONNX Runtime's AveragePool sums rows in a buffer of this many values. For longer rows it is ten times slower.
_POOLING_BUFFER: Final = 2560


class Graph:
    """A graph under construction: its nodes in order, and its tensors, whose values are already written to a file."""

    def __init__(self, net: AlexNet, weights: BinaryIO, location: str) -> None:
        """Write values to `weights`, which the graph refers to as `location`."""
        self.net, self.weights, self.location = net, weights, location
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.scaled_layer = scaled_layer(net.architecture)

    def build(self, mean: NDArray[np.float32]) -> onnx.ModelProto:
        """Return the model; `mean` is float32 [224, 224, 3]."""
        layers = self.net.architecture.layers
        last_hidden = next((layer.name for layer in reversed(layers) if isinstance(layer, Hidden)), None)
        if last_hidden is None:
            raise CheckpointError("The net has no hidden fully-connected layer, so it has no fc7 output to serve.")
        x = self.pixels(mean)
        flat = False
        for layer, maps in zip(layers, self.net.architecture.maps(), strict=False):
            match layer:
                case Conv():
                    x = self.convolution(layer, x)
                case Norm():
                    x = self.normalization(layer, x, maps)
                    x = self.node("Relu", [x], f"{layer.name}.relu") if layer.relu else x
                case Pool():
                    x = self.node(
                        "MaxPool",
                        [x],
                        layer.name,
                        kernel_shape=[layer.size] * 2,
                        strides=[layer.stride] * 2,
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
        """Convert bytes, channels last, to mean-subtracted floats, channels first; bytes are cheaper to transpose."""
        x = self.node("Transpose", [PIXELS], "planes", perm=[0, 3, 1, 2])
        x = self.node("Cast", [x], "floats", to=TensorProto.FLOAT)
        x = self.node("Sub", [x, self.tensor("mean", mean.transpose(2, 0, 1)[None])], "centered")
        scale = self.net.architecture.input_scale
        if scale == 1 or self.scaled_layer:
            return x
        return self.node("Mul", [x, self.tensor("input_scale", np.array(scale))], "scaled")

    def convolution(self, layer: Conv, x: str) -> str:
        """Append a convolution and its ReLU, if any. `edge` becomes padding: the mean color is 0 after subtraction."""
        pad, far = layer.padding, layer.padding + layer.edge
        x = self.node(
            "Conv",
            [x, *self.parameters(layer.name)],
            f"{layer.name}.linear",
            kernel_shape=[layer.size] * 2,
            strides=[layer.stride] * 2,
            pads=[pad, pad, far, far],
            group=layer.towers,
        )
        return self.node("Relu", [x], layer.name) if layer.relu else x

    def normalization(self, layer: Norm, x: str, maps: MapSize) -> str:
        """Append a local response normalization: its sum as an average or a convolution, its power as square roots."""
        if layer.within:
            squares = self.node("Mul", [x, x], f"{layer.name}.squares")
            return self.normalized(layer.name, x, self.averaged(layer, squares, layer.size, layer.size))
        if maps.size**2 > _POOLING_BUFFER:
            squares = self.node("Mul", [x, x], f"{layer.name}.squares")
            return self.normalized(layer.name, x, self.banded(layer.name, squares))
        # Each map becomes one row of an image per tower, and AveragePool averages `span` rows. Reshaping before
        # squaring needs one change of layout instead of two.
        span = 2 * (layer.size // 2) + 1
        rows = [0, layer.towers, maps.channels // layer.towers, maps.size**2]
        x = self.reshaped(x, rows, f"{layer.name}.rows")
        squares = self.node("Mul", [x, x], f"{layer.name}.squares")
        y = self.normalized(f"{layer.name}.normalized", x, self.averaged(layer, squares, span, 1))
        return self.reshaped(y, [0, maps.channels, maps.size, maps.size], layer.name)

    def averaged(self, layer: Norm, squares: str, height: int, width: int) -> str:
        """Append k + alpha * the sum over a window of `height` x `width`, as an average."""
        mean = self.node(
            "AveragePool",
            [squares],
            f"{layer.name}.mean",
            kernel_shape=[height, width],
            pads=[height // 2, width // 2] * 2,
            count_include_pad=1,
        )
        alpha = self.tensor(f"{layer.name}.alpha", np.array(height * width * layer.alpha))
        k = self.tensor(f"{layer.name}.k", np.array(layer.k))
        return self.node("Add", [self.node("Mul", [mean, alpha], f"{layer.name}.sum"), k], f"{layer.name}.scale")

    def banded(self, name: str, squares: str) -> str:
        """Append k + alpha * the sum over neighbors as a 1x1 convolution with a banded matrix, as in alexnet.py."""
        band = self.tensor(f"{name}.band", self.net.get_buffer(f"{name}.band").numpy())
        k = self.tensor(f"{name}.k", self.net.get_buffer(f"{name}.bias").numpy())
        return self.node("Conv", [squares, band, k], f"{name}.scale", kernel_shape=[1, 1])

    def normalized(self, name: str, x: str, scale: str) -> str:
        """Append x / scale^.75."""
        root = self.node("Sqrt", [scale], f"{name}.root")
        fourth_root = self.node("Sqrt", [root], f"{name}.fourth_root")
        return self.node("Div", [x, self.node("Mul", [root, fourth_root], f"{name}.power")], name)

    def linear(self, name: str, x: str) -> str:
        """Append a fully-connected layer. Weights stay [out, in], as trained; the runtime packs them when it loads."""
        return self.node("Gemm", [x, *self.parameters(name)], f"{name}.linear", transB=1)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node that is named after its only output, and return that name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def reshaped(self, x: str, shape: list[int], output: str) -> str:
        """Append a Reshape; 0 keeps a dimension, and -1 is inferred."""
        # Stored inside the graph, so that shapes can be inferred without the weights file.
        self.tensors.append(numpy_helper.from_array(np.array(shape, np.int64), f"{output}.shape"))
        return self.node("Reshape", [x, f"{output}.shape"], output)

    def parameters(self, name: str) -> list[str]:
        """Add the weight and bias of layer `name` as tensors named like the net's parameters."""
        weight, bias = (self.net.get_parameter(f"{name}.{kind}").detach().numpy() for kind in ("weight", "bias"))
        if name == self.scaled_layer:
            weight = weight * np.float32(self.net.architecture.input_scale)
        return [self.tensor(f"{name}.weight", weight), self.tensor(f"{name}.bias", bias)]

    def tensor(self, name: str, values: NDArray[np.floating[Any]]) -> str:
        """Write `values` as little-endian float32; return the name."""
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
        """Return the model of all nodes and tensors."""
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
    """Return the name of the first convolution if `input_scale` is a power of two, so its weights absorb it exactly."""
    first = architecture.layers[0]
    return first.name if isinstance(first, Conv) and math.frexp(architecture.input_scale)[0] == 0.5 else None


def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the net by name, in order, without allocating them."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in AlexNet(architecture).named_parameters()}


def producer() -> str:
    """Return the producer recorded in manifests, such as "fc7 0.1.0"."""
    return f"{PRODUCER} {version('fc7')}"
