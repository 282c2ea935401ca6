"""Read AlexNet from ONNX: the model zoo's AlexNet and CaffeNet, and exports of torchvision's net by `torch.onnx`.

Guarantees: the graph must be one chain of known operators. Its layers are read in order, with the file's padding and
rounding: in the zoo's nets at 224 pixels the first maps are 54x54, and pooling windows extend over the edge. External
data is read from the model's folder only.
Out of scope: running the graph; quantized files; other nets.
References: the zoo's README (input data_0, float [1, 3, 224, 224]); ONNX operators Conv, LRN, MaxPool and Gemm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from model_store.image import CROP
from model_store.training.errors import ImportFormatError
from model_store.training.importers import imported_net
from model_store.training.importers.caffe import CAFFE_CROP, caffe_architecture, caffe_net
from model_store.training.importers.file_kind import Kind, expect, readable
from model_store.training.importers.imported_net import ALEXNET_LAYERS, OWT_LAYERS, ImportedNet, SourceFile
from model_store.training.importers.onnx_chain import Chain, Step, read_chain
from model_store.training.importers.torchvision import DEVIATION, MEAN, torchvision_net
from model_store.training.nets.alexnet import Architecture, Conv, Hidden, Layer, Norm, Pool

_OPERATORS: Final[dict[type[Layer], list[str]]] = {
    Conv: ["Conv", "Relu"],
    Norm: ["LRN"],
    Pool: ["MaxPool"],
    Hidden: ["Gemm", "Relu"],
}
_ARITHMETIC: Final = {"Add", "Sub", "Mul", "Div"}


def read_onnx(
    path: Path,
    *,
    mean: str | None = None,
    layers: tuple[Layer, ...] = ALEXNET_LAYERS,
    owt: tuple[Layer, ...] = OWT_LAYERS,
) -> ImportedNet:
    """Read `bvlcalexnet-*.onnx`, `caffenet-*.onnx` or an export of torchvision's AlexNet, with any number of classes.

    mean: of the zoo's nets, as in `read_caffemodel`. layers, owt: the expected layers of the zoo's nets and of
    torchvision's; padding and rounding may differ. Raises ImportFormatError.
    """
    expect(path, Kind.ONNX)
    with readable(path):
        chain = read_chain(path)
    steps = chain.steps[_normalization(path, chain) :]
    order = _order(path, [step.operator for step in steps], layers, owt)
    size = _input_size(path, chain)
    table = _table(steps, order, size)
    arrays = [(step.name, *step.weight_and_bias()) for step in steps if step.operator in ("Conv", "Gemm")]
    if order != owt:
        _require_no_normalization(path, chain)
        source = SourceFile.of("onnx zoo", path, chain.data_files)
        architecture = replace(caffe_architecture(arrays[-1][2].shape[0], order, layers), layers=table)
        return caffe_net(architecture, arrays, source, mean, size=size, note=" Pooling rounds up.")
    if mean is not None:
        raise ImportFormatError(path, "--mean is for nets of Caffe, and this is torchvision's. Run it without --mean")
    if size != CROP:
        raise ImportFormatError(path, f"its input has {size} pixels instead of {CROP}. Export it for {CROP}x{CROP}")
    return _owt_net(Architecture(arrays[-1][2].shape[0], table, dropout="none", name="owt"), arrays, path, chain)


def _owt_net(
    architecture: Architecture, arrays: Sequence[tuple[str, Tensor, Tensor]], path: Path, chain: Chain
) -> ImportedNet:
    tensors, file_names = {}, {}
    for name, (file_name, weight, bias) in zip(imported_net.learned_layers(architecture), arrays, strict=True):
        file_names[name] = file_name
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    weights = imported_net.checked_weights(path, architecture, tensors, file_names)
    return torchvision_net(architecture, weights, SourceFile.of("torch.onnx", path, chain.data_files))


def _table(steps: Sequence[Step], order: Sequence[Layer], size: int) -> tuple[Layer, ...]:
    """Return the layers `order` with the settings of the file. size: side of the input images in pixels."""
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
    return tuple(table)


def _normalization(path: Path, chain: Chain) -> int:
    """Return the number of steps at the start that normalize pixels as torchvision does, from 0-1 or from 0-255.

    Raises ImportFormatError if they normalize in another way.
    """
    scale, shift, count = torch.ones(3), torch.zeros(3), 0
    for step in chain.steps:
        if step.operator not in _ARITHMETIC:
            break
        if len(step.constants) != 1 or step.constants[0].numel() not in (1, 3):
            raise ImportFormatError(path, f"{step.name} is not a normalization of the three color channels")
        value = step.constants[0].flatten().to(torch.float32)
        match step.operator:
            case "Add":
                shift = shift + value
            case "Sub":
                shift = shift - value
            case "Mul":
                scale, shift = scale * value, shift * value
            case "Div":
                scale, shift = scale / value, shift / value
        count += 1
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    known = any(torch.allclose(scale, 1 / (top * deviation), rtol=1e-3) for top in (1, 255))
    if count and not (known and torch.allclose(shift, -mean / deviation, rtol=1e-3)):
        raise ImportFormatError(
            path,
            f"it normalizes pixels with the factors {scale.tolist()} and the sums {shift.tolist()}, not as "
            "torchvision's transforms do",
        )
    return count


def _require_no_normalization(path: Path, chain: Chain) -> None:
    if chain.steps[0].operator in _ARITHMETIC:
        raise ImportFormatError(path, f"its first node {chain.steps[0].name} changes the pixels, so it is another net")


def _order(path: Path, operators: list[str], layers: tuple[Layer, ...], owt: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers in the order of the graph's operators."""
    for table in (layers, imported_net.pool_first(layers), owt):
        expected = [operator for layer in table for operator in _OPERATORS[type(layer)]] + ["Gemm"]
        if operators in (expected, [*expected, "Softmax"]):
            return table
    quantized = any("Linear" in operator or "Quant" in operator for operator in operators)
    hint = " (the file is quantized. Use the one without -int8 or -qdq)" if quantized else ""
    names = ", ".join(operators[:24]) or "none"
    raise ImportFormatError(
        path,
        f"its operators are {names}, which is neither the zoo's AlexNet or CaffeNet nor torchvision's AlexNet{hint}",
    )


def _input_size(path: Path, chain: Chain) -> int:
    """Return the side of the input images in pixels."""
    for size in (CROP, CAFFE_CROP):
        if len(chain.shape) == 4 and all(
            found in (0, side) for found, side in zip(chain.shape[1:], (3, size, size), strict=True)
        ):
            return size
    shape = imported_net.shape_text(chain.shape)
    raise ImportFormatError(path, f"its input {chain.input} has the shape {shape} instead of Nx3x{CROP}x{CROP}")


def _layer_of_file(step: Step, layer: Layer, maps: int) -> Layer:
    """Return `layer` with the padding, rounding and normalization of the file, after comparing its other settings.

    maps: side of the layer's input maps.
    """
    if isinstance(layer, Conv | Pool):
        near, far = _padding(step)
        _check(step, "padding", near, layer.padding if isinstance(layer, Conv) else 0)
        _check(step, "kernel", step.get("kernel_shape", [layer.size] * 2), [layer.size] * 2)
        _check(step, "stride", step.get("strides", [1, 1]), [layer.stride] * 2)
        _check(step, "dilation", step.get("dilations", [1, 1]), [1, 1])
        if isinstance(layer, Conv):
            _check(step, "groups", step.get("group", 1), layer.towers)
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


def _check(step: Step, setting: str, found: object, expected: object) -> None:
    """Raise ImportFormatError if a setting differs from the expected one."""
    imported_net.check_setting(step.path, step.name, setting, found, expected)


def _padding(step: Step) -> tuple[int, int]:
    """Return the padding (left and top, right and bottom)."""
    if (auto_pad := step.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        raise ImportFormatError(step.path, f"{step.name} has auto_pad {auto_pad}, which is not supported")
    top, left, bottom, right = step.get("pads", [0, 0, 0, 0])
    if top != left or bottom != right or bottom < top:
        raise ImportFormatError(step.path, f"{step.name} has pads {[top, left, bottom, right]}, so it is another net")
    return top, bottom
