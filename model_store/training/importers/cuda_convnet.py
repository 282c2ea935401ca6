"""Read checkpoints of cuda-convnet, Krizhevsky's code of 2011 and 2012, whose nets include the one of the paper.

Guarantees: the net is rebuilt from the layers in the file, whose towers (one for each GPU) are joined. A layer that fc7
cannot compute is rejected with its name. No code of the file runs.
Out of scope: nets for another input than 224x224, contrast normalization, locally-connected layers, the mean image (it
is in `batches.meta`, not in a checkpoint).
References: layer.py of computerhistory/AlexNet-Source-Code for the fields of a layer; layer.cu for what it computes;
gpumodel.py and util.py of cuda-convnet for the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.image import CROP, SIZE
from model_store.training.errors import ImportFormatError
from model_store.training.importers import imported_net
from model_store.training.importers.caffe import mean_image
from model_store.training.importers.file_kind import Kind, kind_of, readable
from model_store.training.importers.imported_net import ImportedNet, SourceFile
from model_store.training.importers.inert_pickle import read_pickle, to_array, to_mapping
from model_store.training.nets.alexnet import DROPOUT_RATE, Architecture, Conv, Dropout, Hidden, Layer, Norm, Pool

_FEATURES: Final = 4096
_EXPONENT: Final = 0.75
_KEPT: Final = 1 - DROPOUT_RATE
_Layer = Mapping[str, Any]  # a layer of the file: name, type, inputs, weights, ...


@dataclass(frozen=True, slots=True)
class _Stage:
    """The layers of all towers at one depth, and the names and numbers of outputs of the layers that they read."""

    towers: Sequence[_Layer]
    before: Sequence[str]
    sizes: Sequence[int]

    @property
    def kind(self) -> str:
        return str(self.towers[0]["type"])

    @property
    def names(self) -> str:
        return ", ".join(str(layer["name"]) for layer in self.towers)


def read_cuda_convnet(path: Path, *, mean: str | None = None) -> ImportedNet:
    """Read a checkpoint, or the newest one in a folder of them. Raises ImportFormatError.

    mean: `batches.meta` of the training data, a `.binaryproto`, three numbers "B,G,R", or None for the mean color of
    ImageNet.
    """
    path = _newest(path)
    source = SourceFile.of("cuda-convnet", path)
    net = _Net(path, _layers(path))
    for stage in _stages(path, net.layers):
        net.append(stage)
    architecture = net.architecture()
    names = dict(zip(imported_net.learned_layers(architecture), net.names, strict=True))
    weights = imported_net.checked_weights(path, architecture, net.tensors, names)
    if architecture.features != _FEATURES:
        raise ImportFormatError(path, f"its last hidden layer has {architecture.features:,} neurons instead of 4,096")
    image, description, remarks = _mean(mean)
    preprocessing = f"RGB 0-255, minus {description} (its center {CROP}x{CROP})."
    return ImportedNet(architecture, weights, image, preprocessing, source, remarks)


def _newest(path: Path) -> Path:
    if not path.is_dir():
        if (kind := kind_of(path)) not in (Kind.CUDA_CONVNET, Kind.TORCH):
            raise ImportFormatError(path, f"it is {kind.description}, not {Kind.CUDA_CONVNET.description}")
        return path
    with readable(path):
        files = [file for file in path.iterdir() if re.fullmatch(r"\d+\.\d+", file.name)]  # epoch and batch
    if not files:
        raise ImportFormatError(path, "the folder has no checkpoints, files with names like 90.1000")
    return max(files, key=lambda file: [int(part) for part in file.name.split(".")])


def _layers(path: Path) -> dict[str, _Layer]:
    """Return the layers of the checkpoint by name; older files have a list, with inputs by number."""
    content = to_mapping(read_pickle(path)) or {}
    state = to_mapping(content.get("model_state")) or {}
    found = state.get("layers")
    if (by_name := to_mapping(found)) is not None:
        found = list(by_name.values())
    if not isinstance(found, list) or not all(
        isinstance(layer, dict) and {"name", "type"} <= layer.keys() for layer in found
    ):
        raise ImportFormatError(path, "it has no model_state with layers, so it is not a checkpoint of cuda-convnet")
    return {
        layer["name"]: layer
        | {"inputs": [i if isinstance(i, str) else found[i]["name"] for i in layer.get("inputs", [])]}
        for layer in found
    }


def _stages(path: Path, layers: Mapping[str, _Layer]) -> list[_Stage]:
    """Return the stages from the first convolution to the last fully-connected layer."""
    ends = [layer for layer in layers.values() if layer["type"] == "softmax"]
    if len(ends) != 1:
        raise ImportFormatError(path, f"it has {len(ends)} softmax layers instead of one")
    stages: list[_Stage] = []
    names = ends[0]["inputs"]
    while len(stages) <= len(layers):
        towers = [layers[name] for name in names if name in layers]
        kinds = {layer["type"] for layer in towers}
        if kinds == {"data"}:
            return stages[::-1]
        if len(kinds) != 1 or len(towers) != len(names):
            types = ", ".join(f"{layer['name']} ({layer['type']})" for layer in towers)
            raise ImportFormatError(
                path, f"layers of different types have the same readers, which is not supported: {types}"
            )
        names = list(dict.fromkeys(name for layer in towers for name in layer["inputs"]))
        stages.append(_Stage(towers, names, [int(layers[name]["outputs"]) for name in names if name in layers]))
    raise ImportFormatError(path, "its layers form a circle, so it is damaged")


class _Net:
    """The net while it is built: the table of layers, and the weights by the names of fc7."""

    def __init__(self, path: Path, layers: Mapping[str, _Layer]) -> None:
        self.path, self.layers = path, layers
        self.table: list[Layer] = []
        self.tensors: dict[str, Tensor] = {}
        self.names: list[str] = []  # of the layers with weights, in the file
        self.kept: list[float] = []  # share of the outputs of each hidden layer that dropout keeps
        self.linear: set[str] = set()  # hidden layers without a ReLU so far
        self.size = CROP

    def append(self, stage: _Stage) -> None:
        """Add the layers of a stage. Raises ImportFormatError if fc7 has no such layer."""
        try:
            self._append(stage)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ImportFormatError(self.path, f"the layer {stage.names} is incomplete ({error!r})") from error

    def _append(self, stage: _Stage) -> None:
        first = stage.towers[0]
        match stage.kind:
            case "conv":
                self._convolution(stage)
            case "fc":
                self._fully_connected(stage)
            case "cmrnorm" | "rnorm":
                self._normalization(stage)
            case "pool":
                self._pooling(stage)
            case "neuron" if first["neuron"]["type"] == "relu" and self.table:
                self._relu()
            case "hs" if self.table and isinstance(self.table[-1], Hidden):
                self.kept[-1] = self._same(stage, "keep")
            case kind:
                raise self._unsupported(stage, f"a layer of the type {kind}")

    def architecture(self) -> Architecture:
        """Return the architecture. A dropout other than the paper's moves into the weights."""
        if self.linear or "fc8.bias" not in self.tensors or not any(isinstance(layer, Hidden) for layer in self.table):
            raise ImportFormatError(
                self.path, "its fully-connected layers are not hidden layers with ReLU and a last one"
            )
        classes = self.tensors["fc8.bias"].shape[0]
        dropout: Dropout = "paper" if self.kept and all(kept == _KEPT for kept in self.kept) else "none"
        if dropout == "none":
            hidden = [layer.name for layer in self.table if isinstance(layer, Hidden)]
            for name, kept in zip([*hidden[1:], "fc8"], self.kept, strict=True):
                self.tensors[f"{name}.weight"] = self.tensors[f"{name}.weight"] * kept
        return Architecture(classes, tuple(self.table), dropout, name="cuda-convnet")

    def _convolution(self, stage: _Stage) -> None:
        inputs = [self._same_inputs(stage, key) for key in ("filterSize", "stride", "padding", "imgSize")]
        size, stride, padding, image = inputs[0], inputs[1], -inputs[2], inputs[3]
        if image != self.size:
            raise self._unsupported(stage, f"an input of {image}x{image} instead of {self.size}x{self.size}")
        if any(any(layer.get("randSparse", [])) or not layer.get("sharedBiases", True) for layer in stage.towers):
            raise self._unsupported(stage, "random connections or a bias for each position")
        blocks: dict[tuple[int, int], NDArray[Any]] = {}
        for number, layer in enumerate(stage.towers):
            for name, values in zip(layer["inputs"], layer["weights"], strict=True):
                matrix = self._array(layer, "weights", values)
                kernels = matrix.reshape(-1, size, size, matrix.shape[1]).transpose(3, 0, 1, 2)
                blocks[number, stage.before.index(name)] = kernels
        towers, groups = len(stage.towers), self._same_inputs(stage, "groups")
        if towers == 1 and len(stage.before) == 1:
            weight, towers = blocks[0, 0], groups
        elif groups != 1:
            raise self._unsupported(stage, "groups within a tower")
        elif towers > 1 and list(blocks) == [(number, number) for number in range(len(stage.before))]:
            weight = np.concatenate(list(blocks.values()))
        else:
            weight, towers = _dense(blocks), 1
        modules = self._same(stage, "modulesX")
        edge = (modules - 1) * stride + size - self.size - 2 * padding
        if padding < 0 or not 0 <= edge < stride:
            raise self._unsupported(stage, f"{modules}x{modules} outputs")
        self._add(
            Conv(self._name("conv", Conv), len(weight), size, stride, padding, edge, towers, False), stage, weight
        )
        self.size = modules

    def _fully_connected(self, stage: _Stage) -> None:
        starts = np.cumsum([0, *stage.sizes])
        weights = []
        for layer in stage.towers:
            own = np.zeros((int(layer["outputs"]), starts[-1]), np.float32)
            for name, values in zip(layer["inputs"], layer["weights"], strict=True):
                place = stage.before.index(name)
                own[:, starts[place] : starts[place + 1]] = self._array(layer, "weights", values).T
            weights.append(own)
        weight = np.concatenate(weights)
        readers = [layer for layer in self.layers.values() if set(layer["inputs"]) & {t["name"] for t in stage.towers}]
        if any(layer["type"] == "softmax" for layer in readers):
            self._add(None, stage, weight)
        else:
            self.kept.append(1)
            name = f"fc{6 + sum(isinstance(layer, Hidden) for layer in self.table)}"
            self.linear.add(name)
            self._add(Hidden(name, len(weight)), stage, weight)

    def _normalization(self, stage: _Stage) -> None:
        size, scale, exponent = (self._same(stage, key) for key in ("size", "scale", "pow"))
        if size % 2 == 0 or abs(exponent - _EXPONENT) > 1e-6 or any(layer.get("blocked") for layer in stage.towers):
            raise self._unsupported(stage, f"a normalization with size {size} and pow {exponent:g}, or blocked")
        within = stage.kind == "rnorm"
        k = 1.0 if within else float(stage.towers[0].get("minDiv", 1.0))
        self.table.append(Norm(self._name("norm", Norm), size, float(scale), k, self._one_to_one(stage), within))

    def _pooling(self, stage: _Stage) -> None:
        size, stride, outputs = (int(self._same(stage, key)) for key in ("sizeX", "stride", "outputsX"))
        edge = (outputs - 1) * stride + size - self.size
        self._one_to_one(stage)
        if self._same(stage, "pool") != "max" or self._same(stage, "start") != 0 or not -stride < edge < size:
            raise self._unsupported(stage, "a pooling other than the maximum of windows from the first position on")
        self.table.append(Pool(self._name("pool", Pool), size, stride, max(edge, 0)))
        self.size = outputs

    def _relu(self) -> None:
        """Apply a ReLU to the last layer, or to the one before poolings: the order of both makes no difference."""
        place = max(place for place, layer in enumerate(self.table) if not isinstance(layer, Pool))
        layer = self.table[place]
        if isinstance(layer, Conv | Norm):
            self.table[place] = replace(layer, relu=True)
        else:
            self.linear.discard(layer.name)

    def _add(self, layer: Layer | None, stage: _Stage, weight: NDArray[Any]) -> None:
        """Add a layer with weights; None is fc8."""
        name = "fc8" if layer is None else layer.name
        if layer is not None:
            self.table.append(layer)
        bias = [self._array(tower, "biases", tower["biases"]).ravel() for tower in stage.towers]
        self.names.append(stage.names)
        self.tensors[f"{name}.weight"] = torch.from_numpy(np.array(weight, np.float32))
        self.tensors[f"{name}.bias"] = torch.from_numpy(np.concatenate(bias).astype(np.float32))

    def _name(self, prefix: str, kind: type[Layer]) -> str:
        return f"{prefix}{1 + sum(isinstance(layer, kind) for layer in self.table)}"

    def _array(self, layer: _Layer, what: str, values: Any) -> NDArray[np.floating[Any]]:
        return to_array(self.path, f"{what} of {layer['name']}", values)

    def _same(self, stage: _Stage, key: str) -> Any:
        """Return a setting that all towers must have in common."""
        values = {layer[key] for layer in stage.towers}
        if len(values) != 1:
            raise self._unsupported(stage, f"towers with different values of {key}")
        return values.pop()

    def _same_inputs(self, stage: _Stage, key: str) -> int:
        """Return a setting that all inputs of all towers must have in common."""
        values = {value for layer in stage.towers for value in layer[key]}
        if len(values) != 1:
            raise self._unsupported(stage, f"inputs with different values of {key}")
        return int(values.pop())

    def _one_to_one(self, stage: _Stage) -> int:
        """Return the number of towers, if each reads one layer of its own."""
        if [layer["inputs"] for layer in stage.towers] != [[name] for name in stage.before]:
            raise self._unsupported(stage, "a layer that reads several towers")
        return len(stage.towers)

    def _unsupported(self, stage: _Stage, what: str) -> ImportFormatError:
        return ImportFormatError(self.path, f"{stage.names} is {what}, which is not supported")


def _dense(blocks: Mapping[tuple[int, int], NDArray[Any]]) -> NDArray[Any]:
    """Return the kernels of all towers over the maps of all inputs; zero where a tower does not read an input."""
    rows = {tower: block.shape[0] for (tower, _), block in blocks.items()}
    columns = {place: block.shape[1] for (_, place), block in sorted(blocks.items(), key=lambda entry: entry[0][1])}
    size = next(iter(blocks.values())).shape[2:]

    def block(tower: int, place: int) -> NDArray[Any]:
        return blocks.get((tower, place), np.zeros((rows[tower], columns[place], *size), np.float32))

    return np.concatenate([np.concatenate([block(tower, place) for place in columns], axis=1) for tower in rows])


def _mean(mean: str | None) -> tuple[NDArray[np.float32], str, tuple[str, ...]]:
    """Return the mean image, RGB float32 [256, 256, 3], its description, and remarks for the user."""
    if mean is None or not Path(mean).is_file() or kind_of(Path(mean)) is Kind.BLOB:
        image, description, _ = mean_image(mean)
        remark = (
            "No --mean was given, so the mean color of ImageNet is subtracted. The outputs are those of cuda-convnet "
            "only with the batches.meta of its training data."
        )
        return image, description, (remark,) if mean is None else ()
    path = Path(mean)
    content = to_mapping(read_pickle(path)) or {}
    if "data_mean" not in content:
        raise ImportFormatError(path, "it has no data_mean, so it is not a batches.meta of cuda-convnet")
    values = to_array(path, "data_mean", content["data_mean"]).ravel()
    if values.size != 3 * SIZE * SIZE or not np.isfinite(values).all():
        raise ImportFormatError(
            path, f"its data_mean has {values.size:,} values instead of 3x{SIZE}x{SIZE} finite ones"
        )
    image = np.ascontiguousarray(values.reshape(3, SIZE, SIZE).transpose(1, 2, 0), np.float32)
    return image, f"the mean image of {path.name} (sha256 {SourceFile.of('mean', path).sha256[:12]})", ()
