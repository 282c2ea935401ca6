"""Publishes a tiny version with a real graph, in a few milliseconds.

Mean colors on a 7x7 grid -> 4096 random features, ReLU (fc7) -> K random classes, softmax (probabilities).

Guarantees: the graph has the inputs and outputs of a served model, and similar images have similar fc7 vectors.
Out of scope: classifying correctly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.artifact import Artifact
from model_store.manifest import MODEL_FILE, WEIGHTS_FILE, ManifestDraft, class_labels
from model_store.store import ModelStore

GRID = 7
CLASSES = ("cat", "dog", "heron", "ferry", "mushroom", "lamp")


def write_tiny_graph(folder: Path, classes: int = len(CLASSES), seed: int = 0, outputs: int = 2) -> None:
    """Write `model.onnx` and `weights.bin` into `folder`. With `outputs=1` the graph is invalid: it has no fc7."""
    for name, content in _tiny_graph(classes, seed, outputs).items():
        (folder / name).write_bytes(content)


@lru_cache(maxsize=32)
def _tiny_graph(classes: int, seed: int, outputs: int) -> dict[str, bytes]:
    """Return the files of a graph by name; most tests use the same one."""
    random = np.random.default_rng(seed)
    inputs = GRID * GRID * 3
    arrays = {
        "centre": np.array(127.5, np.float32),
        "fc7_weight": random.standard_normal((inputs, 4096), np.float32) / np.float32(64 * inputs**0.5),
        "fc8_weight": random.standard_normal((4096, classes), np.float32) / np.float32(8),
    }
    cell = 224 // GRID
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "centre"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc7_weight"], ["fc7_in"]),
        helper.make_node("Relu", ["fc7_in"], ["fc7"]),
        helper.make_node("MatMul", ["fc7", "fc8_weight"], ["fc8"]),
        helper.make_node("Softmax", ["fc8"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 224, 224, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("fc7", TensorProto.FLOAT, ["N", 4096]),
        ][:outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        onnx.save_model(model, path / MODEL_FILE, save_as_external_data=True, location=WEIGHTS_FILE, size_threshold=16)
        return {name: (path / name).read_bytes() for name in (MODEL_FILE, WEIGHTS_FILE)}


def tiny_draft(name: str = "tiny", classes: Sequence[str] = CLASSES) -> ManifestDraft:
    """Return the draft of a manifest for a tiny version."""
    return ManifestDraft(
        name=name,
        architecture="tiny",
        classes=class_labels(classes),
        opset=18,
        producer="tests.support.tiny_model",
        metrics={"top1_error": 0.5, "top5_error": 0.25, "views": 1, "images": 4},
    )


def publish_tiny_model(
    home: Path,
    name: str = "tiny",
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    activate: bool = True,
    *,
    metrics: Mapping[str, Any] | None = None,
) -> Artifact:
    """Publish a tiny version under `home`, and activate it unless `activate` is False. metrics: for its manifest."""
    store = ModelStore(home)
    with store.staging(name) as folder:
        write_tiny_graph(folder, len(classes), seed)
        draft = tiny_draft(name, classes)
        draft = draft.model_copy(update={"metrics": draft.metrics | dict(metrics or {})})
        artifact = store.publish(folder, draft)
    if activate:
        store.activate(artifact.name, artifact.version)
    return artifact
