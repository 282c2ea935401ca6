"""Write checkpoints as cuda-convnet does in Python 2, and compute the outputs of their layers one by one in torch.

The importer is not used: the instructions of the pickle are written one by one, and `outputs` evaluates each layer of
each tower on its own.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Layers = dict[str, dict[str, Any]]


class Instance:
    """An object of an old class of Python 2, such as options.OptionsParser."""

    def __init__(self, module: str, name: str, state: Any) -> None:
        self.module, self.name, self.state = module, name, state


def python2_pickle(value: Any) -> bytes:
    """Return `value` as cPickle of Python 2 writes it with protocol 2."""
    return b"\x80\x02" + _encode(value) + b"."


def _encode(value: Any) -> bytes:  # noqa: PLR0911 - one for each type
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str() | bytes():
            data = value.encode("latin1") if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(data)) + data
        case tuple():
            return b"(" + b"".join(map(_encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_encode(key) + _encode(entry) for key, entry in value.items()) + b"u"
        case Instance():
            return b"(" + _name(value.module, value.name) + b"o" + _encode(value.state) + b"b"
        case np.ndarray():
            kind = _name("numpy", "dtype") + _encode((value.dtype.str[1:], 0, 1)) + b"R"
            kind += _encode((3, "<", None, None, None, -1, -1, 0)) + b"b"
            fortran = value.flags.f_contiguous and not value.flags.c_contiguous
            made = _name("numpy.core.multiarray", "_reconstruct") + b"("
            made += _name("numpy", "ndarray") + _encode((0,)) + _encode("b") + b"tR"
            state = _encode(1) + _encode(value.shape) + kind + _encode(fortran) + _encode(value.tobytes("A"))
            return made + b"(" + state + b"tb"
    raise TypeError(type(value))


def _name(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


_CONVOLUTIONS: Final = (  # name, kernels of all towers, size, stride, padding, whether each tower reads all towers
    ("conv1", 8, 11, 4, 0, False),
    ("conv2", 12, 5, 1, 2, False),
    ("conv3", 8, 3, 1, 1, True),
    ("conv4", 8, 3, 1, 1, False),
    ("conv5", 6, 3, 1, 1, False),
)


class Net:
    """Layers like those of layers-145.cfg, with few kernels, in towers `a` and `b`, or only `a`."""

    def __init__(self, classes: int = 7, towers: str = "ab", keep: float = 0.5, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.towers, self.keep = towers, keep
        self.layers: Layers = {
            "data": {"name": "data", "type": "data", "outputs": 3 * 224**2, "dataIdx": 0},
            "labels": {"name": "labels", "type": "data", "outputs": 1, "dataIdx": 1},
        }
        self.sizes = {"data": (3, 224)}
        below = ["data"] * len(towers)
        for name, filters, size, stride, padding, both in _CONVOLUTIONS:
            inputs = [below if both else [own] for own in below]
            window = (size, stride, padding)
            below = [
                self._after(name, tower, self._conv(name + tower, each, filters // len(towers), window))
                for tower, each in zip(towers, inputs, strict=True)
            ]
        below = [self._hidden(f"fc0{tower}", below, 24 // len(towers)) for tower in towers]
        # The second tower reads the others in another order, as in the original.
        below = [self._hidden(f"fc1{t}", below[:: 1 if t == "a" else -1], 4096 // len(towers)) for t in towers]
        self._fc("fc1000", below, classes, 0.05)
        self._add("probs", "softmax", ["fc1000"], classes)
        self._add("logprob", "cost.logreg", ["labels", "probs"], 1)

    def _add(self, name: str, kind: str, inputs: list[str], outputs: int, **values: Any) -> str:
        self.layers[name] = {"name": name, "type": kind, "inputs": inputs, "outputs": outputs, "gpu": 0, **values}
        self.layers[name]["inputLayers"] = [{"name": name} for name in inputs]
        return name

    def _maps(self, name: str, kind: str, inputs: list[str], shape: tuple[int, int], **values: Any) -> str:
        self.sizes[name] = shape
        return self._add(name, kind, inputs, shape[0] * shape[1] ** 2, **values)

    def _draw(self, rows: int, columns: int, deviation: float | None = None, order: Any = "C") -> NDArray[np.float32]:
        deviation = (2 / rows) ** 0.5 if deviation is None else deviation
        return np.array(self.random.normal(0, deviation, (rows, columns)), np.float32, order=order)

    def _conv(self, name: str, inputs: list[str], filters: int, window: tuple[int, int, int]) -> str:
        size, stride, padding = window
        channels, image = [self.sizes[each][0] for each in inputs], self.sizes[inputs[0]][1]
        modules = 1 + math.ceil((2 * padding + image - size) / stride)
        return self._maps(
            name, "conv", inputs, (filters, modules), filters=filters, modulesX=modules, sharedBiases=True,
            channels=channels, filterChannels=channels, filterSize=[size] * len(inputs), stride=[stride] * len(inputs),
            padding=[-padding] * len(inputs), imgSize=[image] * len(inputs), groups=[1] * len(inputs),
            randSparse=[False] * len(inputs), neuron="relu", biases=self._draw(filters, 1, 0.1),
            weights=[self._draw(each * size**2, filters) for each in channels],
        )  # fmt: skip

    def _after(self, name: str, tower: str, below: str) -> str:
        """Add what follows a convolution in its tower."""
        if name == "conv1":  # the ReLU comes after normalization and pooling
            below = self._norm(f"rnorm1{tower}", "cmrnorm", below, scale=0.02, minDiv=2.0)
            return self._neuron(self._pool(f"pool1{tower}", below))
        if name == "conv2":
            below = self._norm(f"rnorm2{tower}", "cmrnorm", self._neuron(below), scale=0.01, minDiv=2.0)
            return self._pool(f"pool2{tower}", self._norm(f"cnorm2{tower}", "rnorm", below, scale=0.004))
        return self._neuron(self._pool(f"pool3{tower}", below) if name == "conv5" else below)

    def _norm(self, name: str, kind: str, below: str, **values: float) -> str:
        return self._maps(name, kind, [below], self.sizes[below], size=5, pow=0.75, blocked=False, **values)

    def _pool(self, name: str, below: str) -> str:
        maps, image = self.sizes[below]
        outputs = math.ceil((image - 3) / 2) + 1
        window = {"sizeX": 3, "stride": 2, "start": 0, "outputsX": outputs}
        return self._maps(name, "pool", [below], (maps, outputs), pool="max", **window)

    def _neuron(self, below: str) -> str:
        self.sizes[f"{below}_neuron"] = self.sizes.get(below, (0, 0))
        neuron = {"type": "relu", "params": {}, "usesActs": True, "usesInputs": False}
        return self._add(f"{below}_neuron", "neuron", [below], self.layers[below]["outputs"], neuron=neuron)

    def _fc(self, name: str, inputs: list[str], outputs: int, deviation: float | None = None) -> str:
        rows = [self.layers[each]["outputs"] for each in inputs]
        weights = [self._draw(each, outputs, deviation, "F") for each in rows]
        return self._add(name, "fc", inputs, outputs, weights=weights, biases=self._draw(1, outputs, 0.1, "F"))

    def _hidden(self, name: str, inputs: list[str], neurons: int) -> str:
        below = self._neuron(self._fc(name, inputs, neurons))
        return self._add(f"hs{name}", "hs", [below], neurons, keep=self.keep, enable=True)

    def checkpoint(self, *, listed: bool = False) -> dict[str, Any]:
        """Return the content of a checkpoint; listed: as in the release of 2011, with inputs by number."""
        layers: Any = self.layers
        if listed:
            numbers = {name: number for number, name in enumerate(layers)}
            layers = [
                {**layer, "inputs": [numbers[name] for name in layer.get("inputs", [])]} for layer in layers.values()
            ]
        options = Instance("options", "OptionsParser", {"options": {"f": Instance("options", "Option", {"value": 1})}})
        return {"model_state": {"layers": layers, "epoch": 90, "batchnum": 1000}, "op": options}

    def write(self, path: Path, *, listed: bool = False) -> Path:
        path.write_bytes(python2_pickle(self.checkpoint(listed=listed)))
        return path


def outputs(layers: Layers, mean_rgb: NDArray[np.float32], rgb: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return (probabilities, fc7) for images, uint8 [n, 224, 224, 3]. mean_rgb: [3, 256, 256] or [3, 1, 1]."""
    mean = np.broadcast_to(mean_rgb, (3, 256, 256))[:, 16:240, 16:240]
    done = {"data": torch.from_numpy(rgb.transpose(0, 3, 1, 2).astype(np.float32) - mean)}
    hidden: list[Tensor] = []
    for name, layer in layers.items():
        if layer["type"] in ("data", "cost.logreg"):
            continue
        done[name] = _evaluate(layer, [done[each] for each in layer["inputs"]])
        if name.startswith("fc1") and name.endswith("_neuron"):
            hidden.append(done[name])
    return done["probs"], torch.cat(hidden, 1)


def _evaluate(layer: dict[str, Any], inputs: list[Tensor]) -> Any:  # noqa: PLR0911 - one for each type
    x = inputs[0]
    match layer["type"]:
        case "conv":
            parts = zip(inputs, layer["weights"], strict=True)
            total = sum(_convolve(layer, number, x, weights) for number, (x, weights) in enumerate(parts))
            return total + torch.from_numpy(layer["biases"])[None, :, :, None]
        case "cmrnorm":
            squares, half = x * x, layer["size"] // 2
            sums = [squares[:, max(0, i - half) : i + half + 1].sum(1) for i in range(x.shape[1])]
            return x / (layer["minDiv"] + layer["scale"] * torch.stack(sums, 1)) ** layer["pow"]
        case "rnorm":
            n, maps, size, _ = x.shape
            windows = functional.unfold((x * x).reshape(n * maps, 1, size, size), layer["size"], padding=2)
            return x / (1 + layer["scale"] * windows.sum(1).reshape(x.shape)) ** layer["pow"]
        case "pool":
            return functional.max_pool2d(x, layer["sizeX"], layer["stride"], ceil_mode=True)
        case "neuron":
            return x.relu()
        case "hs":
            return x * layer["keep"]
        case "fc":
            parts = zip(inputs, layer["weights"], strict=True)
            return sum((x.flatten(1) @ torch.from_numpy(w) for x, w in parts), torch.from_numpy(layer["biases"]))
    return x.softmax(1)


def _convolve(layer: Mapping[str, Any], number: int, x: Tensor, weights: NDArray[np.float32]) -> Tensor:
    size, stride, padding = layer["filterSize"][number], layer["stride"][number], -layer["padding"][number]
    kernels = torch.from_numpy(weights).T.reshape(-1, layer["filterChannels"][number], size, size)
    right = (layer["modulesX"] - 1) * stride + size - x.shape[2] - padding
    return functional.conv2d(functional.pad(x, (padding, right, padding, right)), kernels, stride=stride)


def python3_pickle(value: Any) -> bytes:
    """Return `value`, without instances, as Python 3 writes it for Python 2."""
    return pickle.dumps(value, protocol=2)
