"""Write a trained net as the served graph: `model.onnx`, and `weights.bin` beside it as its external data.

Promises: input `pixels` uint8 [N, 224, 224, 3] RGB; outputs `probabilities` float32 [N, classes] and `fc7` float32 [N,
neurons]: the last hidden layer after its ReLU and before dropout, not halved; N is free. Mean image, layout, the
recipe's input factor and dropout's halves are inside. Tensors keep the names of the net's parameters (`conv1.weight`),
so weights can be read back: the trained ones, times an exact power of two where a half or the input's factor was
folded in. Every operator is one that ONNX Runtime fuses or blocks well: no Pow, no LRN, no padding of its own.
Does not: check the answers (export.py does), hash or publish; quantise.
Source: ONNX operator set 17, the oldest with all that is used here; the paper, sections 3 and 4.2, for the layers.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import CheckpointError, ShapeError
from model_store.image import CROP, SIZE
from model_store.training.network import (
    DROPOUT_RATE,
    FEATURES,
    AlexNet,
    Architecture,
    Conv,
    Hidden,
    LocalResponseNorm,
    Norm,
    Pool,
)

OPSET: Final = 17
IR_VERSION: Final = 8  # the one that came with operator set 17
PRODUCER: Final = "fc7"
PIXELS: Final = "pixels"
PROBABILITIES: Final = "probabilities"
MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.bin"
_ALIGNMENT: Final = 4096  # whole pages, so that a runtime may map the file instead of reading it


def write_served_graph(net: AlexNet, mean: NDArray[np.float32], folder: Path) -> None:
    """Write `net` with its mean image into `folder` as `model.onnx` and `weights.bin`.

    net: float32; its dropout, if it is the paper's, is folded into the weights that read a dropped layer.
    mean: float32 [256, 256, 3], RGB 0-255, the training set's mean image; its central 224x224 is subtracted from every
    view, as the original code does. Raises ShapeError for another shape, CheckpointError for a table without a hidden
    layer, OSError when the folder cannot be written.
    """
    if mean.shape != (SIZE, SIZE, 3):
        raise ShapeError("the mean image", f"[{SIZE}, {SIZE}, 3]", str(list(mean.shape)))
    edge = (SIZE - CROP) // 2
    centre = mean[edge : edge + CROP, edge : edge + CROP]
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        model = _Graph(net.folded(), weights).build(centre)
    onnx.save_model(model, folder / MODEL_FILE)
    onnx.checker.check_model(folder / MODEL_FILE, full_check=True)


class _Graph:
    """The graph while it is built: its nodes in order, and its tensors, whose values are in `weights` already."""

    def __init__(self, net: AlexNet, weights: BinaryIO) -> None:
        self.net, self.weights = net, weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.scaled_layer = _scaled_layer(net.architecture)

    def build(self, mean: NDArray[np.float32]) -> onnx.ModelProto:
        """Return the model; `mean` is float32 [224, 224, 3]."""
        layers = self.net.architecture.layers
        last_hidden = next((layer.name for layer in reversed(layers) if isinstance(layer, Hidden)), None)
        if last_hidden is None:
            raise CheckpointError("this net has no hidden fully-connected layer, so there is no fc7 to serve")
        x = self.pixels(mean)
        flat = False
        for layer in layers:
            match layer:
                case Conv():
                    x = self.convolution(layer, x)
                case Norm():
                    x = self.normalisation(layer.name, x)
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

    def convolution(self, layer: Conv, x: str) -> str:
        """A convolution and its ReLU. The edge of zeros (the mean colour, by now) is the convolution's own padding."""
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

    def normalisation(self, name: str, x: str) -> str:
        """The norm's formula as network.py writes it: a banded 1x1 convolution of the squares, and two square roots."""
        norm = self.net.get_submodule(name)
        if not isinstance(norm, LocalResponseNorm):  # pragma: no cover
            raise TypeError(f"{name} is a {type(norm).__name__}")
        band = self.tensor(f"{name}.band", norm.band.numpy())
        k = self.tensor(f"{name}.k", norm.bias.numpy())
        squares = self.node("Mul", [x, x], f"{name}.squares")
        scale = self.node("Conv", [squares, band, k], f"{name}.scale", kernel_shape=_pair(1))
        root = self.node("Sqrt", [scale], f"{name}.root")
        fourth_root = self.node("Sqrt", [root], f"{name}.fourth_root")
        power = self.node("Mul", [root, fourth_root], f"{name}.power")
        return self.node("Div", [x, power], name)

    def linear(self, name: str, x: str) -> str:
        """A fully-connected layer. The weights stay [out, in], as trained: the runtime packs them when it loads."""
        return self.node("Gemm", [x, *self.parameters(name)], f"{name}.linear", transB=1)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node named as its one output, which is returned."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def parameters(self, name: str) -> list[str]:
        """Add weight and bias of the net's layer `name`, under the net's names for them."""
        weight, bias = (self.net.get_parameter(f"{name}.{kind}").detach().numpy() for kind in ("weight", "bias"))
        if name == self.scaled_layer:
            weight = weight * np.float32(self.net.architecture.input_scale)
        return [self.tensor(f"{name}.weight", weight), self.tensor(f"{name}.bias", bias)]

    def tensor(self, name: str, values: NDArray[np.floating[Any]]) -> str:
        """Write `values` to the weights file as float32, little-endian, and return the name that refers to them."""
        self.weights.write(bytes(-self.weights.tell() % _ALIGNMENT))
        offset = self.weights.tell()
        self.weights.write(np.ascontiguousarray(values, dtype="<f4").data)
        tensor = TensorProto(
            name=name, dims=values.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", self.weights.tell() - offset)):
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


def read_served_weights(folder: Path, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Return the weights that `write_served_graph` put into `folder`, by name, as `architecture` had them in training.

    What the graph folded in is taken out again: the paper's halves and, where it is a power of two, the input's factor.
    Raises CheckpointError when they are not this architecture's.
    """
    halved = architecture.readers_of_dropped() if architecture.dropout == "paper" else ()
    factors = {f"{name}.weight": 1 - DROPOUT_RATE for name in halved}
    if (scaled := _scaled_layer(architecture)) is not None:
        factors[f"{scaled}.weight"] = architecture.input_scale
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in AlexNet(architecture).named_parameters()}
    graph = onnx.load_model(folder / MODEL_FILE, load_external_data=False).graph
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name in shapes}
    weights = {}
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].dims) != shape:
            raise CheckpointError(f"{folder / MODEL_FILE} has no tensor {name} of shape {shape}: it is another net")
        array = numpy_helper.to_array(found[name], str(folder)).astype(np.float32)
        weights[name] = array / np.float32(factors.get(name, 1))
    return weights


def _scaled_layer(architecture: Architecture) -> str | None:
    """Return the first convolution when the input's factor can move into its weights exactly: a power of two."""
    first = architecture.layers[0]
    return first.name if isinstance(first, Conv) and math.frexp(architecture.input_scale)[0] == 0.5 else None


def _pair(value: int) -> list[int]:
    return [value, value]
