"""Read an ONNX graph as a chain: the nodes between its input and its first output, each with its constants.

Guarantees: weights may be initializers, Constant nodes or (transposed) copies of them, in the file or in the file of
external data beside it. A graph that branches, or whose weights are missing, is rejected with the reason. Nothing of
the graph is run.
Out of scope: what the nodes mean for a net (onnx_net.py); external data in another folder.
References: ONNX IR, "External tensor data".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import external_data_helper, helper, numpy_helper
from torch import Tensor

from model_store.training.errors import ImportFormatError
from model_store.training.importers.caffe import MAX_BYTES

# No effect on the values at test time. A Cast between floating point types only rounds.
_IGNORED: Final = {"Dropout", "Identity", "Reshape", "Flatten", "Squeeze", "Cast"}
_MAX_NODES: Final = 10_000


class Step:
    """A node of the chain: its operator, name and attributes, and its constant inputs in order."""

    def __init__(self, path: Path, node: onnx.NodeProto, constants: tuple[Tensor, ...]) -> None:
        # protobuf returns strings as bytes if they are not UTF-8, as in a damaged file.
        self.path, self.operator, self.name = path, str(node.op_type), str(node.name or node.output[0])
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self.constants = constants

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute or ONNX's default. Raises ImportFormatError if its type or length is wrong."""
        value = self.attributes.get(name, default)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if type(value) is not type(default) or (isinstance(default, list) and len(value) != len(default)):
            raise ImportFormatError(self.path, f"the attribute {name} of {self.name} is not valid: {value!r:.60}")
        return value

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return weights [out, ...] and biases [out] of a convolution or a Gemm. Raises ImportFormatError."""
        if len(self.constants) != 2:
            raise ImportFormatError(
                self.path, f"{self.name} has {len(self.constants)} arrays instead of weights and biases"
            )
        weight, bias = self.constants
        if self.operator == "Conv":
            return weight, bias
        if weight.ndim != 2 or self.get("transA", 0) or self.get("alpha", 1.0) != 1 or self.get("beta", 1.0) != 1:
            raise ImportFormatError(self.path, f"{self.name} is not a plain fully-connected layer")
        return (weight if self.get("transB", 0) else weight.T), bias

    @property
    def keeps_values(self) -> bool:
        """Whether the node only returns its input: average pooling over single values."""
        kernel, strides = self.attributes.get("kernel_shape"), self.attributes.get("strides", [1, 1])
        return (
            self.operator == "AveragePool"
            and kernel == [1, 1]
            and strides == [1, 1]
            and not any(self.attributes.get("pads", []))
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps from the input to the first output.

    input: name of the input. shape: its dimensions, 0 if they are not fixed. data_files: the files of external data.
    """

    input: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    data_files: tuple[Path, ...]


def read_chain(path: Path) -> Chain:
    """Read a model as a chain. Raises ImportFormatError."""
    if path.stat().st_size > MAX_BYTES:
        raise ImportFormatError(path, f"it has {path.stat().st_size:,} bytes, which exceeds the limit of {MAX_BYTES:,}")
    try:
        graph = onnx.load_model(path, load_external_data=False).graph
    except Exception as error:  # onnx documents no errors, and passes on those of several protobuf implementations
        raise ImportFormatError(path, f"it is truncated or damaged ({error})") from error
    constants = _Constants(path, graph)
    inputs = [entry for entry in graph.input if entry.name not in constants.tensors]
    if len(inputs) != 1:
        names = ", ".join(str(entry.name) for entry in inputs[:5])
        raise ImportFormatError(path, f"it has {len(inputs)} inputs ({names}), but AlexNet has one")
    shape = tuple(dimension.dim_value for dimension in inputs[0].type.tensor_type.shape.dim)
    steps = [step for step in _steps(path, graph, inputs[0].name, constants) if not step.keeps_values]
    return Chain(str(inputs[0].name), shape, tuple(_merge_additions(path, steps)), tuple(sorted(constants.files)))


class _Constants:
    """The constants of a graph by name, which are read when they are used."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self._path, self._read = path, 0
        self.files: set[Path] = set()
        self.tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._copies: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
                self.tensors[node.output[0]] = node.attribute[0].t
            elif node.op_type in ("Identity", "Transpose") and node.input and self.is_constant(node.input[0]):
                self._copies[node.output[0]] = node

    def is_constant(self, name: str) -> bool:
        return name in self.tensors or name in self._copies

    def get(self, name: str) -> Tensor:
        """Return the value of a constant. Raises ImportFormatError."""
        if (node := self._copies.get(name)) is not None:
            value = self.get(node.input[0])
            if node.op_type == "Identity":
                return value
            order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
            return value.permute(order or list(range(value.ndim))[::-1])
        tensor = self.tensors[name]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self._load_external(tensor)
        try:
            return torch.from_numpy(numpy_helper.to_array(tensor).copy())
        except (ValueError, TypeError) as error:
            raise ImportFormatError(self._path, f"the weights {name} are damaged ({error})") from error

    def _load_external(self, tensor: onnx.TensorProto) -> None:
        """Read the values of a tensor from another file. onnx rejects links and files in other folders."""
        info = external_data_helper.ExternalDataInfo(tensor)
        file = self._path.parent / info.location
        self._read += info.length or 0
        try:
            if not file.is_file():
                reason = f"its weights are in the file {info.location}, which is missing in {file.parent}"
                raise ImportFormatError(self._path, f"{reason}. Copy it to that folder")
            if max(self._read, file.stat().st_size) > MAX_BYTES:
                raise ImportFormatError(self._path, f"its weights have more than {MAX_BYTES:,} bytes")
            external_data_helper.load_external_data_for_tensor(tensor, str(self._path.parent))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ImportFormatError(self._path, f"its file {info.location} cannot be read ({reason})") from error
        self.files.add(file)


def _steps(path: Path, graph: onnx.GraphProto, entry: str, constants: _Constants) -> list[Step]:
    """Return the nodes on the way from the input `entry` to the first output, in order."""
    producers = {output: node for node in graph.node for output in node.output}
    steps: list[Step] = []
    current = graph.output[0].name if graph.output else ""
    for _ in range(min(len(graph.node), _MAX_NODES) + 1):
        if current == entry:
            return steps[::-1]
        node = producers.get(current)
        if node is None:
            raise ImportFormatError(path, f"no node of it computes {current or 'an output'}")
        used = _values(node)
        where = f"its node {node.name or node.op_type}"
        varying = [name for name in used if not constants.is_constant(name)]
        if missing := [name for name in varying if name != entry and name not in producers]:
            raise ImportFormatError(path, f"{where} has no weights {missing[0]!r}")
        if len(varying) != 1:
            raise ImportFormatError(
                path, f"{where} has {len(varying)} inputs that depend on the image, so it is another net"
            )
        current = varying[0]
        if node.op_type in ("Sub", "Div") and used[0] != current:
            raise ImportFormatError(path, f"{where} has its inputs in the wrong order")
        if node.op_type not in _IGNORED:
            steps.append(Step(path, node, tuple(constants.get(name) for name in used if name != current)))
    raise ImportFormatError(path, "its nodes form a loop")


def _values(node: onnx.NodeProto) -> list[str]:
    """Return the inputs of a node that are values. The other inputs of ignored nodes are shapes and settings."""
    names = [name for name in node.input if name]
    return names[:1] if node.op_type in _IGNORED else names


def _merge_additions(path: Path, steps: list[Step]) -> Iterator[Step]:
    """Yield the steps with each MatMul and the Add of its biases as one Gemm, and each LogSoftmax as a Softmax."""
    remaining = iter(steps)
    for step in remaining:
        if step.operator == "MatMul" and len(step.constants) == 1:
            following = next(remaining, None)
            if following is None or following.operator != "Add" or len(following.constants) != 1:
                raise ImportFormatError(path, f"{step.name} is not followed by its biases")
            step.operator, step.constants = "Gemm", (*step.constants, *following.constants)
        elif step.operator == "LogSoftmax":
            step.operator = "Softmax"
        yield step
