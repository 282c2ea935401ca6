"""Write a net as the graph that is served (`model.onnx` and `weights.bin`), and read its weights back.

The graph for explanations, `explain.onnx`, is written with it.

Guarantees: the graph contains the mean image, the pixel layout, the recipe's input scale and the scaling of dropout.
Tensors keep the names of the net's parameters (`conv1.weight`), so weights can be read back: they are the trained ones
times an exact power of two.
Out of scope: comparing the graph with the net and publishing it (publish.py); other precisions (quantize.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from model_store.errors import CheckpointError, ShapeError
from model_store.image import CROP, SIZE
from model_store.manifest import MODEL_FILE, WEIGHTS_FILE
from model_store.training.export.explain_graph import write_explain_graph
from model_store.training.export.graph import Graph, parameter_shapes, scaled_layer
from model_store.training.nets.alexnet import DROPOUT_RATE, AlexNet, Architecture


def write_served_graph(net: AlexNet, mean: NDArray[np.float32], folder: Path) -> None:
    """Write `net` with its mean image into `folder`.

    net: float32. If its dropout is the paper's, its factor is folded into the weights that follow a dropped layer.
    mean: the mean image of the training set, float32 [256, 256, 3], RGB 0-255. Its central 224x224 is subtracted from
    every view, as in the original code.
    Raises ShapeError for a mean of another shape, CheckpointError for a net without a hidden layer, and OSError.
    """
    if mean.shape != (SIZE, SIZE, 3):
        raise ShapeError("The mean image", f"[{SIZE}, {SIZE}, 3]", str(list(mean.shape)))
    edge = (SIZE - CROP) // 2
    center = mean[edge : edge + CROP, edge : edge + CROP]
    net = net.folded()
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        model = Graph(net, weights, WEIGHTS_FILE).build(center)
    onnx.save_model(model, folder / MODEL_FILE)
    onnx.checker.check_model(folder / MODEL_FILE, full_check=True)
    write_explain_graph(folder)


def read_served_weights(folder: Path, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Return the weights in `folder` by name, as `architecture` had them in training.

    Undoes the factors that `write_served_graph` folded in: the paper's dropout and a power-of-two input scale.
    Raises CheckpointError if the weights do not fit the architecture.
    """
    halved = architecture.layers_after_dropout() if architecture.dropout == "paper" else ()
    factors = {f"{name}.weight": 1 - DROPOUT_RATE for name in halved}
    if (scaled := scaled_layer(architecture)) is not None:
        factors[f"{scaled}.weight"] = architecture.input_scale
    graph = onnx.load_model(folder / MODEL_FILE, load_external_data=False).graph
    found = {tensor.name: tensor for tensor in graph.initializer}
    weights = {}
    for name, shape in parameter_shapes(architecture).items():
        if name not in found or tuple(found[name].dims) != shape:
            raise CheckpointError(
                f"{folder / MODEL_FILE} has no tensor {name} of shape {shape}, so it does not match its architecture."
            )
        array = numpy_helper.to_array(found[name], str(folder)).astype(np.float32)
        weights[name] = array / np.float32(factors.get(name, 1))
    return weights
