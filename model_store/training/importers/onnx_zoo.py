"""Read the ONNX zoo's AlexNet and CaffeNet: Caffe's nets, by way of Caffe2, with softmax as the only output.

Promises: the graph must be one chain of known operators, and its layers are taken from it in order, with their own
padding and rounding: at 224 the first maps are 54x54, and the pools hang over the edge; no other file is read.
Does not: run the graph, take quantised files or external weights, take other nets.
Source: the zoo's README (input data_0, float [1, 3, 224, 224]); ONNX's operators Conv, LRN, MaxPool and Gemm.
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

from model_store.errors import ImportFormatError
from model_store.image import CROP
from model_store.training.importers.caffe import MAX_BYTES, mean_image
from model_store.training.importers.file_kind import Kind, expect
from model_store.training.importers.imported_net import (
    ALEXNET_LAYERS,
    ImportedNet,
    Source,
    checked,
    learned,
    pool_first,
    to_rgb,
)
from model_store.training.nets.alexnet import Architecture, Conv, Hidden, Layer, Norm, Pool

_CAFFE_SIZE: Final = 227
_NOTHING: Final = {"Dropout", "Identity", "Reshape", "Flatten"}  # no weights, and no change to the values at test time
_OPERATORS: Final[dict[type[Layer], list[str]]] = {
    Conv: ["Conv", "Relu"],
    Norm: ["LRN"],
    Pool: ["MaxPool"],
    Hidden: ["Gemm", "Relu"],
}


class _Step:
    """A node of the chain that does something: its attributes by name, and its weights."""

    def __init__(self, path: Path, node: onnx.NodeProto, weights: Sequence[Tensor]) -> None:
        # A broken file's words may be bytes: protobuf hands out what is no UTF-8 as it is.
        self.path, self.operator, self.name = path, str(node.op_type), str(node.name or node.output[0])
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self.weights = weights

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute, or ONNX's default for it. Raises ImportFormatError for one of another type or length."""
        value = self.attributes.get(name, default)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if type(value) is not type(default) or (isinstance(default, list) and len(value) != len(default)):
            raise ImportFormatError(self.path, f"the attribute {name} of its {self.name} is broken: {value!r:.60}")
        return value


def read_onnx(path: Path, *, mean: str | None = None, layers: tuple[Layer, ...] = ALEXNET_LAYERS) -> ImportedNet:
    """Read `bvlcalexnet-*.onnx` or `caffenet-*.onnx`, whatever its number of classes.

    mean: as for a caffemodel. layers: the table it must have, but for padding and rounding. Raises ImportFormatError.
    """
    expect(path, Kind.ONNX)
    source = Source.of("onnx zoo", path)
    graph = _graph(path, source.size)
    steps = _chain(path, graph)
    order = _order(path, [step.operator for step in steps], layers)
    size = _input_size(path, graph)
    last = steps[-1] if steps[-1].operator == "Gemm" else steps[-2]
    table, tensors, called = [], {}, {}
    name = "caffenet" if order == pool_first(layers) else "bvlc_alexnet"
    remaining = iter(steps)
    maps = size
    for layer in order:
        step = next(remaining)
        if isinstance(layer, Conv | Hidden):
            next(remaining)  # its ReLU
        own = _own(path, layer, step, maps)
        table.append(own)
        if isinstance(own, Conv):
            maps = (maps + 2 * own.padding + own.edge - own.size) // own.stride + 1
        elif isinstance(own, Pool):
            maps = (maps + own.edge - own.size) // own.stride + 1
    # The picture that is served has 224 pixels: a net of 227 gets the rest as an edge of the mean colour.
    first = table[0]
    if not isinstance(first, Conv):  # pragma: no cover - every table begins with one
        raise TypeError(f"{first.name} is no convolution")
    table[0] = replace(first, edge=first.edge + size - CROP)
    classes = _linear(path, last)[0].shape[0]
    architecture = Architecture(classes, tuple(table), dropout="inverted", name=name)
    weighted = [step for step in steps if step.operator in ("Conv", "Gemm")]
    for our, step in zip(learned(architecture), weighted, strict=True):
        called[our] = step.name
        pair = _linear(path, step) if step.operator == "Gemm" else _pair(path, step)
        tensors[f"{our}.weight"], tensors[f"{our}.bias"] = pair
    weights = to_rgb(checked(path, architecture, tensors, called), architecture)
    image, words, remarks = mean_image(mean)
    edge = f", and {size - CROP} columns and rows of the mean colour are added" if size > CROP else ""
    preprocessing = (
        f"RGB 0-255, minus {words} (its centre {CROP}x{CROP}); the net is Caffe's and wants BGR {size}x{size}: its "
        f"first kernels were turned to RGB{edge}; the pools round up"
    )
    return ImportedNet(architecture, weights, image, preprocessing, source, remarks)


def _graph(path: Path, size: int) -> onnx.GraphProto:
    if size > MAX_BYTES:
        raise ImportFormatError(path, f"it has {size:,} bytes, and such a file has at most {MAX_BYTES:,}")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as exc:  # the seam: onnx documents none, and hands on those of protobuf's several readers
        raise ImportFormatError(path, f"it is cut short or broken ({exc})") from exc
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ImportFormatError(path, f"its tensor {tensor.name} is in another file, which is not read")
    return graph


def _chain(path: Path, graph: onnx.GraphProto) -> list[_Step]:
    """Return the nodes that do something, in order. Raises ImportFormatError where the graph is no plain chain."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [entry.name for entry in graph.input if entry.name not in values]
    if len(inputs) != 1:
        raise ImportFormatError(
            path, f"it takes {len(inputs)} inputs ({', '.join(map(str, inputs[:5]))}), and AlexNet takes one"
        )
    current, steps = inputs[0], []
    for node in graph.node:
        if not node.input or node.input[0] != current or not node.output:
            raise ImportFormatError(path, f"its node {node.name or node.op_type} does not follow the one before")
        current = node.output[0]
        if node.op_type in _NOTHING:
            continue
        try:
            weights = [torch.from_numpy(numpy_helper.to_array(values[name]).copy()) for name in node.input[1:]]
        except KeyError as exc:
            raise ImportFormatError(path, f"its node {node.name or node.op_type} has no weights {exc}") from exc
        except (ValueError, TypeError) as exc:
            raise ImportFormatError(path, f"the weights of {node.name or node.op_type} are broken ({exc})") from exc
        steps.append(_Step(path, node, weights))
    return steps


def _order(path: Path, operators: list[str], layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the table whose operators the graph has, in its order."""
    for table in (layers, pool_first(layers)):
        wanted = [operator for layer in table for operator in _OPERATORS[type(layer)]] + ["Gemm"]
        if operators in (wanted, [*wanted, "Softmax"]):
            return table
    quantised = " (a quantised file: take the one without -int8 or -qdq)" if _is_quantised(operators) else ""
    shown = ", ".join(operators[:24]) or "none"
    raise ImportFormatError(path, f"its operators are {shown}: neither the zoo's AlexNet nor its CaffeNet{quantised}")


def _is_quantised(operators: list[str]) -> bool:
    return any("Linear" in operator or "Quant" in operator for operator in operators)


def _input_size(path: Path, graph: onnx.GraphProto) -> int:
    values = {tensor.name for tensor in graph.initializer}
    entry = next(entry for entry in graph.input if entry.name not in values)
    shape = [dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]
    for size in (CROP, _CAFFE_SIZE):
        if shape[1:] == [3, size, size]:
            return size
    raise ImportFormatError(path, f"its input {entry.name} has the shape {'x'.join(map(str, shape))}, not Nx3x224x224")


def _own(path: Path, layer: Layer, step: _Step, maps: int) -> Layer:
    """Return `layer` with the file's own padding, rounding and normalisation, after comparing the rest."""
    match layer:
        case Conv():
            near, far = _padding(path, step)
            _same(path, step, "padding", near, layer.padding)
            _same(path, step, "kernel", step.get("kernel_shape", [layer.size] * 2), [layer.size] * 2)
            _same(path, step, "stride", step.get("strides", [1, 1]), [layer.stride] * 2)
            _same(path, step, "dilation", step.get("dilations", [1, 1]), [1, 1])
            _same(path, step, "groups", step.get("group", 1), layer.towers)
            return replace(layer, edge=far - near)
        case Pool():
            near, far = _padding(path, step)
            _same(path, step, "padding", near, 0)
            _same(path, step, "kernel", step.get("kernel_shape", [layer.size] * 2), [layer.size] * 2)
            _same(path, step, "stride", step.get("strides", [1, 1]), [layer.stride] * 2)
            if step.get("ceil_mode", 0):
                far += -(maps + far - layer.size) % layer.stride
            return replace(layer, edge=far)
        case Norm():
            size, beta = step.get("size", 0), step.get("beta", 0.75)
            if size % 2 == 0 or abs(beta - 0.75) > 1e-6:
                raise ImportFormatError(path, f"its {step.name} has size {size}, beta {beta:g}: only an odd size, .75")
            # Single precision in the file: back to the number that was meant.
            alpha = float(f"{step.get('alpha', 1e-4):.7g}")
            return replace(layer, size=size, alpha=alpha / size, k=float(f"{step.get('bias', 1.0):.7g}"))
        case _:
            return layer


def _padding(path: Path, step: _Step) -> tuple[int, int]:
    """Return the padding (left and top, right and bottom)."""
    if step.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ImportFormatError(path, f"its {step.name} has auto_pad {step.get('auto_pad', '')}")
    top, left, bottom, right = step.get("pads", [0, 0, 0, 0])
    if top != left or bottom != right or bottom < top:
        raise ImportFormatError(path, f"its {step.name} has pads {[top, left, bottom, right]}: it is another net")
    return top, bottom


def _same(path: Path, step: _Step, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ImportFormatError(path, f"its {step.name} has {what} {found}, not {wanted}: it is another net")


def _pair(path: Path, step: _Step) -> tuple[Tensor, Tensor]:
    if len(step.weights) != 2:
        raise ImportFormatError(path, f"its {step.name} has {len(step.weights)} arrays, not weights and biases")
    return step.weights[0], step.weights[1]


def _linear(path: Path, step: _Step) -> tuple[Tensor, Tensor]:
    """Return weights [out, in] and biases of a Gemm."""
    weight, bias = _pair(path, step)
    if weight.ndim != 2 or step.get("transA", 0) or step.get("alpha", 1.0) != 1 or step.get("beta", 1.0) != 1:
        raise ImportFormatError(path, f"its {step.name} is no plain fully-connected layer")
    return (weight if step.get("transB", 0) else weight.T), bias
