"""Read AlexNet and CaffeNet of the ONNX model zoo: Caffe's nets, converted by Caffe2, with softmax as the only output.

Guarantees: the graph must be one chain of known operators. Its layers are read in order, with the file's padding and
rounding: at 224 pixels the first maps are 54x54, and pooling windows extend over the edge. No other file is read.
Out of scope: running the graph; quantized files; external weights; other nets.
References: the zoo's README (input data_0, float [1, 3, 224, 224]); ONNX operators Conv, LRN, MaxPool and Gemm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from model_store.image import CROP
from model_store.training.errors import ImportFormatError
from model_store.training.importers import imported_net
from model_store.training.importers.caffe import CAFFE_CROP, MAX_BYTES, caffe_architecture, caffe_net
from model_store.training.importers.file_kind import Kind, expect
from model_store.training.importers.imported_net import ALEXNET_LAYERS, ImportedNet, SourceFile
from model_store.training.nets.alexnet import Conv, Hidden, Layer, Norm, Pool

_IGNORED: Final = {"Dropout", "Identity", "Reshape", "Flatten"}  # no weights, and no effect on the values at test time
_OPERATORS: Final[dict[type[Layer], list[str]]] = {
    Conv: ["Conv", "Relu"],
    Norm: ["LRN"],
    Pool: ["MaxPool"],
    Hidden: ["Gemm", "Relu"],
}


class _Step:
    """A node of the chain: its operator, name, attributes and weights."""

    def __init__(self, path: Path, node: onnx.NodeProto, weights: Sequence[Tensor]) -> None:
        # protobuf returns strings as bytes if they are not UTF-8, as in a damaged file.
        self.path, self.operator, self.name = path, str(node.op_type), str(node.name or node.output[0])
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self.weights = weights

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute or ONNX's default. Raises ImportFormatError if its type or length is wrong."""
        value = self.attributes.get(name, default)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if type(value) is not type(default) or (isinstance(default, list) and len(value) != len(default)):
            raise ImportFormatError(self.path, f"the attribute {name} of {self.name} is not valid: {value!r:.60}")
        return value

    def check(self, setting: str, found: Any, expected: Any) -> None:
        """Raise ImportFormatError if a setting differs from the expected one."""
        imported_net.check_setting(self.path, self.name, setting, found, expected)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return weights [out, ...] and biases [out] of a convolution or a Gemm. Raises ImportFormatError."""
        if len(self.weights) != 2:
            raise ImportFormatError(
                self.path, f"{self.name} has {len(self.weights)} arrays instead of weights and biases"
            )
        weight, bias = self.weights
        if self.operator == "Conv":
            return weight, bias
        if weight.ndim != 2 or self.get("transA", 0) or self.get("alpha", 1.0) != 1 or self.get("beta", 1.0) != 1:
            raise ImportFormatError(self.path, f"{self.name} is not a plain fully-connected layer")
        return (weight if self.get("transB", 0) else weight.T), bias


def read_onnx(path: Path, *, mean: str | None = None, layers: tuple[Layer, ...] = ALEXNET_LAYERS) -> ImportedNet:
    """Read `bvlcalexnet-*.onnx` or `caffenet-*.onnx` with any number of classes.

    mean: as in `read_caffemodel`. layers: the expected layers; padding and rounding may differ.
    Raises ImportFormatError.
    """
    expect(path, Kind.ONNX)
    source = SourceFile.of("onnx zoo", path)
    graph = _graph(path, source.size)
    steps = _chain(path, graph)
    order = _order(path, [step.operator for step in steps], layers)
    size = _input_size(path, graph)
    remaining = iter(steps)
    table: list[Layer] = []
    maps = CROP
    for layer in order:
        step = next(remaining)
        if isinstance(layer, Conv | Hidden):
            next(remaining)  # its ReLU
        own = _layer_of_file(step, layer, maps)
        if isinstance(own, Conv):
            if not table:  # Images are served at 224 pixels. A net for 227 pixels gets an edge.
                own = replace(own, edge=own.edge + size - CROP)
            maps = (maps + 2 * own.padding + own.edge - own.size) // own.stride + 1
        elif isinstance(own, Pool):
            maps = (maps + own.edge - own.size) // own.stride + 1
        table.append(own)
    arrays = [(step.name, *step.weight_and_bias()) for step in steps if step.operator in ("Conv", "Gemm")]
    classes = arrays[-1][1].shape[0]
    architecture = replace(caffe_architecture(classes, order, layers), layers=tuple(table))
    return caffe_net(architecture, arrays, source, mean, size=size, note=" Pooling rounds up.")


def _graph(path: Path, size: int) -> onnx.GraphProto:
    if size > MAX_BYTES:
        raise ImportFormatError(path, f"it has {size:,} bytes, which exceeds the limit of {MAX_BYTES:,}")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # onnx documents no errors, and passes on those of several protobuf implementations
        raise ImportFormatError(path, f"it is truncated or damaged ({error})") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ImportFormatError(path, f"its tensor {tensor.name} is in another file, which is not supported")
    return model.graph


def _chain(path: Path, graph: onnx.GraphProto) -> list[_Step]:
    """Return the nodes that affect the values, in order. Raises ImportFormatError if the graph is not a chain."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [entry.name for entry in graph.input if entry.name not in values]
    if len(inputs) != 1:
        raise ImportFormatError(
            path, f"it has {len(inputs)} inputs ({', '.join(map(str, inputs[:5]))}), but AlexNet has one"
        )
    current, steps = inputs[0], []
    for node in graph.node:
        name = node.name or node.op_type
        if not node.input or node.input[0] != current or not node.output:
            raise ImportFormatError(path, f"its node {name} does not follow the previous node")
        current = node.output[0]
        if node.op_type in _IGNORED:
            continue
        try:
            weights = [torch.from_numpy(numpy_helper.to_array(values[tensor]).copy()) for tensor in node.input[1:]]
        except KeyError as error:
            raise ImportFormatError(path, f"its node {name} has no weights {error}") from error
        except (ValueError, TypeError) as error:
            raise ImportFormatError(path, f"the weights of {name} are damaged ({error})") from error
        steps.append(_Step(path, node, weights))
    return steps


def _order(path: Path, operators: list[str], layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers in the order of the graph's operators."""
    for table in (layers, imported_net.pool_first(layers)):
        expected = [operator for layer in table for operator in _OPERATORS[type(layer)]] + ["Gemm"]
        if operators in (expected, [*expected, "Softmax"]):
            return table
    quantized = any("Linear" in operator or "Quant" in operator for operator in operators)
    hint = " (the file is quantized. Use the one without -int8 or -qdq)" if quantized else ""
    names = ", ".join(operators[:24]) or "none"
    raise ImportFormatError(path, f"its operators are {names}, which is neither the zoo's AlexNet nor CaffeNet{hint}")


def _input_size(path: Path, graph: onnx.GraphProto) -> int:
    values = {tensor.name for tensor in graph.initializer}
    entry = next(entry for entry in graph.input if entry.name not in values)
    shape = [dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]
    for size in (CROP, CAFFE_CROP):
        if shape[1:] == [3, size, size]:
            return size
    raise ImportFormatError(
        path, f"its input {entry.name} has the shape {imported_net.shape_text(shape)} instead of Nx3x224x224"
    )


def _layer_of_file(step: _Step, layer: Layer, maps: int) -> Layer:
    """Return `layer` with the padding, rounding and normalization of the file, after comparing its other settings.

    maps: side of the layer's input maps.
    """
    if isinstance(layer, Conv | Pool):
        near, far = _padding(step)
        step.check("padding", near, layer.padding if isinstance(layer, Conv) else 0)
        step.check("kernel", step.get("kernel_shape", [layer.size] * 2), [layer.size] * 2)
        step.check("stride", step.get("strides", [1, 1]), [layer.stride] * 2)
        if isinstance(layer, Conv):
            step.check("dilation", step.get("dilations", [1, 1]), [1, 1])
            step.check("groups", step.get("group", 1), layer.towers)
            return replace(layer, edge=far - near)
        if step.get("ceil_mode", 0):
            far += -(maps + far - layer.size) % layer.stride
        return replace(layer, edge=far)
    if isinstance(layer, Norm):
        return imported_net.norm_of_file(
            step.path,
            step.name,
            layer,
            size=step.get("size", 0),
            alpha=step.get("alpha", 1e-4),
            beta=step.get("beta", 0.75),
            k=step.get("bias", 1.0),
        )
    return layer


def _padding(step: _Step) -> tuple[int, int]:
    """Return the padding (left and top, right and bottom)."""
    if (auto_pad := step.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        raise ImportFormatError(step.path, f"{step.name} has auto_pad {auto_pad}, which is not supported")
    top, left, bottom, right = step.get("pads", [0, 0, 0, 0])
    if top != left or bottom != right or bottom < top:
        raise ImportFormatError(step.path, f"{step.name} has pads {[top, left, bottom, right]}, so it is another net")
    return top, bottom
