"""Write `explain.onnx`: the served graph, followed by the nodes of Grad-CAM at the last convolution.

The heat map of an output y is ReLU(sum over channels of weight * map). The maps are those that the last pooling reads
(conv5 after its ReLU, 13x13), and a channel's weight is the mean of dy/dmap over its cells. Max pooling passes each
gradient to one cell of the same channel, so the sum over a channel's cells is the same before and after it. Therefore
the weights follow from the gradient of the first fully connected layer's input, and its matrix can be summed over the
cells of each channel in advance: 4 MB instead of 151 MB, and no routing of gradients to the maxima.

Guarantees: the result equals automatic differentiation of the net except for rounding, whatever values are equal in a
pooling window. The file refers to the tensors of `weights.bin`, so the weights are not stored twice, and the served
graph and its fingerprint do not change.
Out of scope: running the graph (runtime/explainer.py); versions in int8 and fp16, which are explained in fp32.
References: Selvaraju et al. 2017, "Grad-CAM", section 3; ONNX operator set 17.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from model_store.artifact import Artifact
from model_store.errors import CheckpointError, TrainingError
from model_store.manifest import MODEL_FILE, ManifestDraft
from model_store.runtime.explainer import EXPLAIN_FILE
from model_store.store import ModelStore

_PREFIX: Final = "explain."
_TINY: Final = np.finfo(np.float32).tiny


def write_explain_graph(folder: Path) -> None:
    """Write `explain.onnx` beside the `model.onnx` and `weights.bin` in `folder`.

    Inputs, besides `pixels`: `class`, int64 [N], whose logit is explained, -1 for the most probable class; `near`,
    float32 [N, 4096], an fc7 vector; `by_distance`, bool [N, 1]: explain the negative Euclidean distance between fc7
    and `near` instead of a logit. Outputs, besides `probabilities` and `fc7`: `heat`, float32 [N, height, width], at
    least 0 and not scaled; `explained`, int64 [N], the class.
    Raises CheckpointError if the graph does not end with fully connected layers on the maps of a convolution.
    """
    model = onnx.load_model(folder / MODEL_FILE, load_external_data=False)
    _Backward(folder, model).append()
    onnx.save_model(model, folder / EXPLAIN_FILE)
    onnx.checker.check_model(folder / EXPLAIN_FILE, full_check=True)


def add_explanations(artifact: Artifact, store: ModelStore) -> Artifact:
    """Publish the next version of `artifact.name`: the same files with `explain.onnx` added.

    Its fingerprints are the same, so an index keeps its vectors. Raises TrainingError if the version has the file
    already, CheckpointError, ArtifactError and PublishError.
    """
    if EXPLAIN_FILE in artifact.manifest.files:
        raise TrainingError(f"{artifact.id} has the graph for explanations already.")
    artifact.verify()
    manifest = artifact.manifest
    draft = ManifestDraft(**manifest.model_dump(include=set(ManifestDraft.model_fields) - {"precisions"}))
    precisions = {name: entry.metrics for name, entry in manifest.precisions.items()}
    with store.staging(artifact.name) as staged:
        for name in manifest.files:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, staged / name)
        write_explain_graph(staged)
        return store.publish(staged, draft.model_copy(update={"parent_version": artifact.id, "precisions": precisions}))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A fully connected layer: the name of its weights [out, in], and of its output after ReLU ("" for the last)."""

    weight: str
    output: str


class _Backward:
    """Appends the nodes of the backward pass to a graph. All names that it adds start with a prefix of their own."""

    def __init__(self, folder: Path, model: onnx.ModelProto) -> None:
        self._folder, self._graph = folder, model.graph
        self._producers: dict[str, onnx.NodeProto] = {
            output: node for node in model.graph.node for output in node.output
        }
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        inferred = shape_inference.infer_shapes(model).graph
        self._shapes = {
            value.name: [entry.dim_value for entry in value.type.tensor_type.shape.dim]
            for value in [*inferred.value_info, *inferred.input]
        }

    def append(self) -> None:
        """Add nodes, inputs and outputs."""
        head, *hidden, maps = self._layers()
        features = hidden[0].output
        gradient = self._output_gradient(head.weight, features)
        zero = self._constant("zero", np.array(0, np.float32))
        for layer, before in zip(hidden, [*hidden[1:], None], strict=True):
            active = self._node("Greater", [layer.output, zero], f"{layer.output}.active")
            gradient = self._node("Where", [active, gradient, zero], f"{layer.output}.gradient")
            if before is not None:
                gradient = self._node("MatMul", [gradient, layer.weight], f"{before.output}.input_gradient")
        self._heat(self._pooled(hidden[-1].weight, maps.output), gradient, maps.output)
        width = self._tensors[head.weight].dims[1]
        new = helper.make_tensor_value_info
        self._graph.input.extend(
            [
                new("class", TensorProto.INT64, ["N"]),
                new("near", TensorProto.FLOAT, ["N", width]),
                new("by_distance", TensorProto.BOOL, ["N", 1]),
            ]
        )
        size = self._shapes[maps.output][2:]
        self._graph.output.append(new("heat", TensorProto.FLOAT, ["N", *size]))
        self._graph.output.append(new("explained", TensorProto.INT64, ["N"]))

    def _layers(self) -> Sequence[_Layer]:
        """Return the fully connected layers, last first, and at the end the maps, as a layer without weights."""
        name, layers = self._reader("probabilities", "Softmax").input[0], []
        if (node := self._producers.get(name)) is not None and node.op_type == "Div":
            name = node.input[0]  # the logits before the temperature; it does not change which pixels matter
        gemm, output = self._reader(name, "Gemm"), ""
        while True:
            layers.append(_Layer(gemm.input[1], output))
            output = gemm.input[0]
            node = self._producers.get(output)
            if node is None or node.op_type != "Relu":
                break
            gemm = self._reader(node.input[0], "Gemm")
        name = self._reader(output, "Flatten").input[0]
        while (node := self._producers.get(name)) is not None and node.op_type == "MaxPool":
            name = node.input[0]
        if len(layers) < 2 or len(self._shapes.get(name, ())) != 4:
            raise self._unsupported()
        return [*layers, _Layer("", name)]

    def _reader(self, output: str, operator: str) -> onnx.NodeProto:
        """Return the node with this output. Raises CheckpointError if it is another operator, or none."""
        node = self._producers.get(output)
        transposed = node is None or operator != "Gemm" or any(a.name == "transB" and a.i for a in node.attribute)
        if node is None or node.op_type != operator or not transposed:
            raise self._unsupported()
        return node

    def _unsupported(self) -> CheckpointError:
        return CheckpointError(
            f"{self._folder / MODEL_FILE} does not end with fully connected layers on the maps of a convolution, so "
            "its answers cannot be explained."
        )

    def _output_gradient(self, head: str, features: str) -> str:
        """Append the gradient of what is explained with respect to fc7: a row of fc8, or the direction to `near`."""
        best = self._node("ArgMax", ["probabilities"], "best", axis=1, keepdims=0)
        first = self._constant("first_class", np.array(0, np.int64))
        unset = self._node("Less", ["class", first], "unset")
        self._graph.node.append(helper.make_node("Where", [unset, best, "class"], ["explained"], name="explained"))
        row = self._node("Gather", [head, "explained"], "row", axis=0)
        difference = self._node("Sub", ["near", features], "difference")
        distance = self._node("ReduceL2", [difference], "distance", axes=[1], keepdims=1)
        tiny = self._constant("tiny", np.array(_TINY, np.float32))
        positive = self._node("Max", [distance, tiny], "positive_distance")
        direction = self._node("Div", [difference, positive], "direction")
        return self._node("Where", ["by_distance", direction, row], "output_gradient")

    def _pooled(self, weight: str, maps: str) -> str:
        """Add the first layer's weights summed over the cells of each channel, divided by the number of map cells."""
        _, channels, height, width = self._shapes[maps]
        values = numpy_helper.to_array(self._tensors[weight], str(self._folder))
        sums: NDArray[Any] = values.reshape(len(values), channels, -1).sum(axis=2, dtype=np.float64)
        return self._constant(f"{weight}.summed", (sums / (height * width)).astype(np.float32))

    def _heat(self, pooled: str, gradient: str, maps: str) -> None:
        _, channels, height, width = self._shapes[maps]
        weights = self._node("MatMul", [gradient, pooled], "weights")
        rows = self._node("Reshape", [weights, self._shape("weights", 1, channels)], "weight_rows")
        cells = self._node("Reshape", [maps, self._shape("maps", channels, height * width)], "cells")
        total = self._node("MatMul", [rows, cells], "sum")
        heat = self._node("Relu", [total], "positive")
        shape = self._shape("heat", height, width)
        self._graph.node.append(helper.make_node("Reshape", [heat, shape], ["heat"], name="heat"))

    def _shape(self, name: str, *sizes: int) -> str:
        return self._constant(f"{name}.shape", np.array([0, *sizes], np.int64))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, _PREFIX + name))
        return _PREFIX + name

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = _PREFIX + output
        self._graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name
