"""The same net as a plain export, as a user of another server would serve it.

`nn.LocalResponseNorm` and torch's other modules are exported by `torch.onnx.export`, with the weights, the mean image
and the temperature of a published version. The export is checked to give the same probabilities as the version. It
writes the normalization as padding, an average over three dimensions, and a power.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from model_store.image import CROP
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.export.calibration import TEMPERATURE
from model_store.training.nets.alexnet import Conv, Hidden, Norm, Pool
from model_store.training.parents import find_parent
from model_store.training.runs.fine_tuning import Parent

_MEAN = "mean"
_MAX_DIFFERENCE = 1e-4


class PlainNet(nn.Module):
    """The net of a version in torch's own modules: pixels uint8 [n, 224, 224, 3] -> probabilities, fc7."""

    mean: Tensor

    def __init__(self, parent: Parent, mean: Tensor, temperature: float) -> None:
        super().__init__()
        self._temperature = temperature
        self.register_buffer("mean", mean)
        self._scale = parent.architecture.input_scale
        self._halves = parent.architecture.dropout == "paper"
        channels, self.layers = 3, nn.ModuleDict()
        for layer, out in zip(parent.architecture.layers, parent.architecture.maps(), strict=False):
            match layer:
                case Conv():
                    parts = [
                        nn.Conv2d(channels, layer.kernels, layer.size, layer.stride, layer.padding, 1, layer.towers)
                    ]
                    edge = [nn.ZeroPad2d((0, layer.edge, 0, layer.edge))] if layer.edge else []
                    self.layers[layer.name] = nn.Sequential(*edge, *parts, nn.ReLU())
                case Norm():
                    self.layers[layer.name] = nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, 0.75, layer.k)
                case Pool():
                    self.layers[layer.name] = nn.MaxPool2d(layer.size, layer.stride)
                case Hidden():
                    rows, columns = parent.weights[f"{layer.name}.weight"].shape
                    self.layers[layer.name] = nn.Sequential(nn.Flatten(), nn.Linear(columns, rows), nn.ReLU())
            channels = out.channels
        self.fc8 = nn.Linear(channels, len(parent.classes))
        for name, values in parent.weights.items():
            layer_name, _, kind = name.partition(".")
            owner = self.fc8 if layer_name == "fc8" else self.layers[layer_name]
            [target] = [part for part in owner.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
            target.get_parameter(kind).data.copy_(values)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (probabilities [n, classes], fc7 [n, 4096])."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self._scale
        features = x
        for name, layer in self.layers.items():
            x = layer(x)
            if name.startswith("fc"):
                features = x
                x = x / 2 if self._halves else x
        return torch.softmax(cast(Tensor, self.fc8(x)) / self._temperature, 1), features


def write_plain_graph(home: Path, folder: Path) -> Path:
    """Export the active version of `home` into `folder` with torch.onnx, and return the path of the graph.

    Raises SystemExit if its probabilities differ from those of the version.
    """
    artifact = ModelStore(home).active_artifact()
    graph = onnx.load_model(artifact.path / "model.onnx").graph
    values = {
        tensor.name: numpy_helper.to_array(tensor, str(artifact.path))
        for tensor in graph.initializer
        if tensor.name in (_MEAN, TEMPERATURE)
    }
    mean, temperature = torch.from_numpy(values[_MEAN].copy()), float(values.get(TEMPERATURE, 1.0))
    net = PlainNet(find_parent(home, artifact.id), mean, temperature).eval()
    path = folder / "plain.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (2, CROP, CROP, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        torch.onnx.export(
            net,
            (torch.from_numpy(pixels),),
            path,
            input_names=["pixels"],
            output_names=["probabilities", "fc7"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    [found, _] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})
    difference = float(
        np.abs(found - Runner(artifact, RunnerOptions(arithmetic="f32")).run(pixels).probabilities).max()
    )
    if not difference <= _MAX_DIFFERENCE:
        raise SystemExit(
            f"The probabilities of the plain export differ from those of {artifact.id} by {difference:.1e}."
        )
    return path
