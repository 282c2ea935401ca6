"""Write a trained net as the served graph: `model.onnx`, and `weights.bin` beside it as its external data.

Promises: mean image, layout, the recipe's input factor and dropout's halves are inside. Tensors keep the names of the
net's parameters (`conv1.weight`), so weights can be read back: the trained ones, times an exact power of two where a
half or the input's factor was folded in. `batches.onnx` is the same net as a CPU computes batches fastest, with
`batches.bin` for what `weights.bin` has not; a net whose layers have no faster form has none.
Does not: check the answers (export.py does), hash or publish; quantise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from model_store.artifact import BATCHES_FILE, BATCHES_WEIGHTS_FILE, MODEL_FILE, WEIGHTS_FILE
from model_store.errors import CheckpointError, ShapeError
from model_store.image import CROP, SIZE
from model_store.training.export.graph import Graph, scaled_layer
from model_store.training.export.winograd import BatchGraph
from model_store.training.nets.alexnet import DROPOUT_RATE, AlexNet, Architecture


def write_served_graph(net: AlexNet, mean: NDArray[np.float32], folder: Path) -> None:
    """Write `net` with its mean image into `folder` as `model.onnx` and `weights.bin`, and for batches on a CPU.

    net: float32; its dropout, if it is the paper's, is folded into the weights that read a dropped layer.
    mean: float32 [256, 256, 3], RGB 0-255, the training set's mean image; its central 224x224 is subtracted from every
    view, as the original code does. Raises ShapeError for another shape, CheckpointError for a table without a hidden
    layer, OSError when the folder cannot be written.
    """
    if mean.shape != (SIZE, SIZE, 3):
        raise ShapeError("the mean image", f"[{SIZE}, {SIZE}, 3]", str(list(mean.shape)))
    edge = (SIZE - CROP) // 2
    centre = mean[edge : edge + CROP, edge : edge + CROP]
    net = net.folded()
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        graph = Graph(net, weights, WEIGHTS_FILE)
        model = graph.build(centre)
    _save(model, folder / MODEL_FILE)
    tensors = {tensor.name: tensor for tensor in graph.tensors}
    with (folder / BATCHES_WEIGHTS_FILE).open("wb") as weights:
        batches = BatchGraph(net, weights, BATCHES_WEIGHTS_FILE, tensors)
        model = batches.build(centre)
    if batches.rewritten:
        _save(model, folder / BATCHES_FILE)
    else:
        (folder / BATCHES_WEIGHTS_FILE).unlink()


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save_model(model, path)
    onnx.checker.check_model(path, full_check=True)


def read_served_weights(folder: Path, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Return the weights that `write_served_graph` put into `folder`, by name, as `architecture` had them in training.

    What the graph folded in is taken out again: the paper's halves and, where it is a power of two, the input's factor.
    Raises CheckpointError when they are not this architecture's.
    """
    halved = architecture.layers_after_dropout() if architecture.dropout == "paper" else ()
    factors = {f"{name}.weight": 1 - DROPOUT_RATE for name in halved}
    if (scaled := scaled_layer(architecture)) is not None:
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
