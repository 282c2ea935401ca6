"""Read Caffe's files: `.caffemodel` (BVLC AlexNet and CaffeNet, old and new layout) and mean images (`.binaryproto`).

Guarantees: every weight is identified by its position in the net and its shape is checked. Stride, padding, groups,
pooling and normalization in the file are compared with the net's. A file that is truncated, of another kind or of
another net is rejected with the reason.
Out of scope: running Caffe; prototxt and HDF5 files; nets with other layers.
References: caffe.proto (field numbers of NetParameter, LayerParameter, V1LayerParameter and BlobProto); deploy.prototxt
of bvlc_alexnet; lrn_layer.cpp, which divides alpha by the number of neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.image import CROP, SIZE
from model_store.protobuf import Field, Wire, WireError, fields, float32, varints
from model_store.training.errors import ImportFormatError
from model_store.training.importers import imported_net
from model_store.training.importers.file_kind import Kind, expect, readable
from model_store.training.importers.imported_net import ALEXNET_LAYERS, ImportedNet, SourceFile
from model_store.training.nets.alexnet import Architecture, Conv, Hidden, Layer, Norm, Pool

CAFFE_CROP: Final = 227
MAX_BYTES: Final = 1 << 31  # the limit of protocol buffers
# The mean color of the ILSVRC-2012 mean image, as Caffe's own examples subtract it.
IMAGENET_MEAN_BGR: Final = (104.00698793, 116.66876762, 122.67891434)
_MAX_DIMENSIONS: Final = 32  # Caffe's own limit
_NET_NAME, _V1_LAYERS, _LAYERS = 1, 2, 100
# Fields of a layer in the new and the old layout. `settings`: convolution_param, lrn_param or pooling_param.
_NEW: Final = {1: "name", 2: "type", 7: "blobs", 106: "settings", 118: "settings", 121: "settings"}
_OLD: Final = {4: "name", 5: "type", 6: "blobs", 10: "settings", 18: "settings", 19: "settings", 1: "oldest"}
_OLD_TYPES: Final = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling"}
_KINDS: Final[dict[type[Layer], str]] = {Conv: "Convolution", Norm: "LRN", Pool: "Pooling", Hidden: "InnerProduct"}


@dataclass(frozen=True, slots=True)
class Blob:
    """An array in the file: its shape, and its values in order as float32."""

    shape: tuple[int, ...]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _CaffeLayer:
    name: str
    kind: str  # Caffe's type, or "" if the file omits it
    blobs: tuple[Blob, ...]
    settings: memoryview | None


def read_caffemodel(
    path: Path, *, mean: str | None = None, caffenet: bool = False, layers: tuple[Layer, ...] = ALEXNET_LAYERS
) -> ImportedNet:
    """Read a `.caffemodel` with AlexNet's or CaffeNet's layers and any number of classes.

    mean: a `.binaryproto` or three numbers "B,G,R" (default: the mean color of ImageNet). caffenet: pooling precedes
    normalization, for a file that does not specify the order. layers: the expected layers. Raises ImportFormatError.
    """
    expect(path, Kind.CAFFE)
    source = SourceFile.of("caffe", path)
    with readable(path):
        net_name, found = _net(_bytes(path))
    order = _order(path, net_name, found, layers, caffenet)
    weighted = [layer for layer in found if layer.blobs]
    classes = weighted[-1].blobs[0].shape[-2] if weighted and len(weighted[-1].blobs[0].shape) >= 2 else 0
    architecture = caffe_architecture(max(classes, 1), order, layers)
    expected = imported_net.learned_layers(architecture)
    if len(weighted) != len(expected):
        names = ", ".join(layer.name for layer in weighted[:12]) or "none"
        raise ImportFormatError(
            path,
            f"it has {len(weighted)} layers with weights ({names}), but {architecture.name} has {len(expected)}: "
            f"{', '.join(expected)}",
        )
    architecture = replace(architecture, layers=tuple(_with_file_norms(path, order, found)))
    arrays = []
    for layer, name in zip(weighted, expected, strict=True):
        if len(layer.blobs) != 2:
            raise ImportFormatError(
                path, f"layer {layer.name} has {len(layer.blobs)} arrays instead of weights and biases"
            )
        dimensions = 4 if name.startswith("conv") else 2
        weight, bias = (
            torch.from_numpy(blob.values.reshape(_without_ones(blob.shape, count)))
            for blob, count in zip(layer.blobs, (dimensions, 1), strict=True)
        )
        arrays.append((layer.name, weight, bias))
    return caffe_net(architecture, arrays, source, mean, size=CAFFE_CROP)


def caffe_architecture(classes: int, order: tuple[Layer, ...], layers: tuple[Layer, ...]) -> Architecture:
    """Return the architecture of a net of Caffe with the layers in `order`; `layers` is AlexNet's own order."""
    name = "caffenet" if order == imported_net.pool_first(layers) else "bvlc_alexnet"
    return Architecture(classes, order, dropout="inverted", name=name)


def caffe_net(
    architecture: Architecture,
    arrays: Sequence[tuple[str, Tensor, Tensor]],
    source: SourceFile,
    mean: str | None,
    *,
    size: int,
    note: str = "",
) -> ImportedNet:
    """Return a net that was trained in Caffe on BGR images of `size` pixels, converted to RGB.

    arrays: (name in the file, weights, biases) of each layer in order. note: added to the description of the
    preprocessing. Raises ImportFormatError if the arrays do not fit the architecture or `mean` cannot be read.
    """
    tensors, file_names = {}, {}
    for name, (file_name, weight, bias) in zip(imported_net.learned_layers(architecture), arrays, strict=True):
        file_names[name] = file_name
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    weights = imported_net.checked_weights(source.path, architecture, tensors, file_names)
    first = next(iter(weights))
    weights[first] = weights[first].flip(1).contiguous()
    image, description, remarks = mean_image(mean)
    edge = size - CROP
    padding = (
        f", and {edge} columns and rows of the mean color are added on the right and at the bottom" if edge else ""
    )
    preprocessing = (
        f"RGB 0-255, minus {description} (its center {CROP}x{CROP}). The net is Caffe's, for BGR {size}x{size}: "
        f"its first kernels were converted to RGB{padding}.{note}"
    )
    return ImportedNet(architecture, weights, image, preprocessing, source, remarks)


def mean_image(mean: str | None) -> tuple[NDArray[np.float32], str, tuple[str, ...]]:
    """Return the mean image of a Caffe net (RGB, float32 [256, 256, 3]), its description, and remarks for the user.

    mean: a `.binaryproto` of 3x256x256 (or 3x1x1), BGR; three numbers "B,G,R"; None for the mean color of ImageNet.
    Raises ImportFormatError.
    """
    if mean is None:
        blue, green, red = IMAGENET_MEAN_BGR
        remark = (
            f"No --mean was given, so the mean color of ImageNet is subtracted (B {blue:.2f}, G {green:.2f}, "
            f"R {red:.2f}). The outputs are closer to Caffe's with the mean image of the training set, "
            "imagenet_mean.binaryproto."
        )
        return imported_net.color_image((red, green, blue)), "the mean color of ImageNet", (remark,)
    path = Path(mean)
    numbers = mean.split(",")
    if len(numbers) == 3 and not path.exists():
        try:
            blue, green, red = (float(number) for number in numbers)
        except ValueError:
            raise ImportFormatError(path, "a mean must be a .binaryproto file or three numbers B,G,R") from None
        return imported_net.color_image((red, green, blue)), f"the mean color B {blue:g}, G {green:g}, R {red:g}", ()
    return read_mean(path), f"the mean image {path.name} (sha256 {SourceFile.of('mean', path).sha256[:12]})", ()


def read_mean(path: Path) -> NDArray[np.float32]:
    """Read a mean image, a BlobProto of BGR 3x256x256 (or one color, 3x1x1), as RGB float32 [256, 256, 3].

    Raises ImportFormatError.
    """
    expect(path, Kind.BLOB)
    with readable(path):
        blob = _blob(_bytes(path))
    shape = _without_ones(blob.shape, 3)
    if shape not in ((3, SIZE, SIZE), (3, 1, 1)):
        raise ImportFormatError(
            path, f"the mean image has the shape {imported_net.shape_text(shape)} instead of 3x{SIZE}x{SIZE}"
        )
    if not np.isfinite(blob.values).all():
        raise ImportFormatError(path, "the mean image has values that are not finite, so the file is damaged")
    image = blob.values.reshape(shape)[::-1].transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(image, (SIZE, SIZE, 3)), np.float32)


def _bytes(path: Path) -> memoryview:
    if path.stat().st_size > MAX_BYTES:
        raise WireError(f"it has {path.stat().st_size:,} bytes, which exceeds the limit of {MAX_BYTES:,}")
    return memoryview(path.read_bytes())


def _net(message: memoryview) -> tuple[str, list[_CaffeLayer]]:
    name, layers = "", []
    for field in fields(message):
        if field.id == _NET_NAME and field.wire == Wire.LENGTH:
            name = _string(field.data)
        elif field.id in (_LAYERS, _V1_LAYERS) and field.wire == Wire.LENGTH:
            layers.append(_layer(field.data, _NEW if field.id == _LAYERS else _OLD))
    return name, layers


def _layer(message: memoryview, field_names: dict[int, str]) -> _CaffeLayer:
    name, kind, blobs, settings = "", "", [], None
    for field in fields(message):
        match field_names.get(field.id), field.wire:
            case "name", Wire.LENGTH:
                name = _string(field.data)
            case "type", Wire.LENGTH:
                kind = _string(field.data)
            case "type", Wire.VARINT:
                kind = _OLD_TYPES.get(field.number, f"type {field.number}")
            case "blobs", Wire.LENGTH:
                blobs.append(_blob(field.data))
            case "settings", Wire.LENGTH:
                settings = field.data
            case "oldest", Wire.LENGTH:
                raise WireError("it has the layout of 2013. Run Caffe's upgrade_net_proto_binary on it first")
    return _CaffeLayer(name or "without a name", kind, tuple(blobs), settings)


def _blob(message: memoryview) -> Blob:
    shape: tuple[int, ...] | None = None
    old = [0, 0, 0, 0]  # num, channels, height, width
    chunks: list[NDArray[np.float32]] = []
    for field in fields(message):
        if field.id == 7 and field.wire == Wire.LENGTH:
            shape = tuple(number for entry in fields(field.data) if entry.id == 1 for number in _integers(entry))
        elif 1 <= field.id <= 4 and field.wire == Wire.VARINT:
            old[field.id - 1] = field.number
        elif field.id == 5 and field.wire in (Wire.LENGTH, Wire.FIXED32):
            chunks.append(_values(field.data, "<f4"))
        elif field.id == 8 and field.wire in (Wire.LENGTH, Wire.FIXED64):
            chunks.append(_values(field.data, "<f8").astype(np.float32))
    values = chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.float32), *chunks])
    if shape is None:
        shape = tuple(old) if any(old) else (len(values),)
    if len(shape) > _MAX_DIMENSIONS:
        raise WireError(f"an array has {len(shape)} dimensions, which exceeds the limit of {_MAX_DIMENSIONS}")
    if math.prod(shape) != len(values):
        raise WireError(
            f"an array of shape {imported_net.shape_text(shape)} has {len(values):,} values, so the file is damaged"
        )
    return Blob(shape, values)


def _values(data: memoryview, dtype: str) -> NDArray[np.float32]:
    if len(data) % np.dtype(dtype).itemsize:
        raise WireError("an array ends in the middle of a number, so the file is damaged")
    # A copy lets the bytes of the file be freed, and torch requires writable memory.
    return np.frombuffer(data, dtype).copy()


def _integers(field: Field) -> list[int]:
    return [field.number] if field.wire == Wire.VARINT else varints(field.data)


def _string(data: memoryview) -> str:
    return bytes(data[:200]).decode("utf-8", "replace")


def _without_ones(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Drop leading ones of `shape` down to `count` dimensions. Old files store a bias as 1x1x1x96."""
    while len(shape) > count and shape[0] == 1:
        shape = shape[1:]
    return shape


def _order(
    path: Path, net_name: str, found: Sequence[_CaffeLayer], layers: tuple[Layer, ...], caffenet: bool
) -> tuple[Layer, ...]:
    """Return the layers in the file's order. Without norms and pools, the net's name or `caffenet` decides."""
    other = imported_net.pool_first(layers)
    kinds = [layer.kind for layer in found if layer.kind in _KINDS.values()]
    if not {"LRN", "Pooling"} & set(kinds):
        return other if caffenet or net_name.lower() == "caffenet" else layers
    for table in (layers, other):
        if kinds == [*(_KINDS[type(layer)] for layer in table), "InnerProduct"]:
            if caffenet and table == layers:
                raise ImportFormatError(
                    path, "normalization precedes pooling, so it is not CaffeNet. Run the command without --caffenet"
                )
            return table
    raise ImportFormatError(path, f"its layers are {', '.join(kinds)}, which is neither AlexNet nor CaffeNet")


def _with_file_norms(path: Path, order: Sequence[Layer], found: Sequence[_CaffeLayer]) -> Iterator[Layer]:
    """Yield `order` with the constants of the file's norms, after comparing all other settings."""
    by_kind = {kind: iter([layer for layer in found if layer.kind == kind]) for kind in _KINDS.values()}
    for layer in order:
        caffe_layer = next(by_kind[_KINDS[type(layer)]], None)
        if caffe_layer is None or caffe_layer.settings is None:
            yield layer
            continue
        with readable(path):
            yield _compare(path, layer, f"layer {caffe_layer.name}", list(fields(caffe_layer.settings)))


def _compare(path: Path, layer: Layer, where: str, settings: Sequence[Field]) -> Layer:
    def number(field_id: int, default: int) -> int:
        values = [value for field in settings if field.id == field_id for value in _integers(field)]
        return values[-1] if values else default

    def real(field_id: int, default: float) -> float:
        return next((float32(f.data) for f in reversed(settings) if f.id == field_id and f.data), default)

    match layer:
        case Conv():
            imported_net.check_setting(path, where, "kernel", number(4, layer.size), layer.size)
            imported_net.check_setting(path, where, "stride", number(6, 1), layer.stride)
            imported_net.check_setting(path, where, "padding", number(3, 0), layer.padding)
            imported_net.check_setting(path, where, "groups", number(5, 1), layer.towers)
        case Pool():
            imported_net.check_setting(path, where, "method (0: maximum)", number(1, 0), 0)
            imported_net.check_setting(path, where, "kernel", number(2, 0), layer.size)
            imported_net.check_setting(path, where, "stride", number(3, 1), layer.stride)
            imported_net.check_setting(path, where, "padding", number(4, 0), 0)
        case Norm():
            imported_net.check_setting(path, where, "region (0: across channels)", number(4, 0), 0)
            return imported_net.norm_of_file(
                path, where, layer, size=number(1, 5), alpha=real(2, 1.0), beta=real(3, 0.75), k=real(5, 1.0)
            )
    return layer
