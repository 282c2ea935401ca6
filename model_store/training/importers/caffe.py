"""Read Caffe's files: `.caffemodel` (BVLC AlexNet and CaffeNet, old and new layout) and the mean's `.binaryproto`.

Promises: every weight is found by its place in the net and checked by its shape; stride, padding, groups, pooling and
normalisation that the file states are compared with the net's; a cut, swapped or foreign file is refused by name.
Does not: run Caffe, read prototxt or HDF5, take nets of another design.
Source: caffe.proto (NetParameter, LayerParameter, V1LayerParameter, BlobProto: the field numbers below); bvlc_alexnet's
deploy.prototxt; lrn_layer.cpp for alpha, which is divided by the number of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.errors import ImportFormatError
from model_store.image import CROP, SIZE
from model_store.training.importers.file_kind import Kind, expect
from model_store.training.importers.imported_net import (
    ALEXNET_LAYERS,
    IMAGENET_MEAN_BGR,
    ImportedNet,
    Source,
    checked,
    colour_image,
    learned,
    pool_first,
    to_rgb,
)
from model_store.training.importers.protobuf import Field, Wire, WireError, fields, float32, varints
from model_store.training.nets.alexnet import Architecture, Conv, Hidden, Layer, Norm, Pool

MAX_BYTES: Final = 1 << 31  # a protocol buffer cannot be larger
_MAX_DIMENSIONS: Final = 32  # Caffe's own limit
_NET_NAME, _V1_LAYERS, _LAYERS = 1, 2, 100
# Of a layer in the new layout and in the old one: name, type, blobs, convolution_param, lrn_param, pooling_param.
_NEW: Final = {1: "name", 2: "type", 7: "blobs", 106: "settings", 118: "settings", 121: "settings"}
_OLD: Final = {4: "name", 5: "type", 6: "blobs", 10: "settings", 18: "settings", 19: "settings", 1: "oldest"}
_OLD_TYPES: Final = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling"}
_KINDS: Final[dict[type[Layer], str]] = {
    Conv: "Convolution",
    Norm: "LRN",
    Pool: "Pooling",
    Hidden: "InnerProduct",
}


@dataclass(frozen=True, slots=True)
class Blob:
    """An array of the file: its shape as written, and its values in order, float32."""

    shape: tuple[int, ...]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _CaffeLayer:
    name: str
    kind: str  # Caffe's type; "" when the file leaves it out
    blobs: tuple[Blob, ...]
    settings: memoryview | None


def read_caffemodel(
    path: Path, *, mean: str | None = None, caffenet: bool = False, layers: tuple[Layer, ...] = ALEXNET_LAYERS
) -> ImportedNet:
    """Read a `.caffemodel` of AlexNet's or CaffeNet's layers, whatever its number of classes.

    mean: a `.binaryproto`, or three numbers B,G,R; the ImageNet mean colour unless given. caffenet: pool before the
    norms, for a file that does not tell. layers: the table it must have. Raises ImportFormatError.
    """
    expect(path, Kind.CAFFE)
    source = Source.of("caffe", path)
    with _reading(path):
        name, found = _net(_bytes(path))
    order = _order(path, name, found, layers, caffenet)
    weighted = [layer for layer in found if layer.blobs]
    classes = weighted[-1].blobs[0].shape[-2] if weighted and len(weighted[-1].blobs[0].shape) >= 2 else 0
    architecture = Architecture(
        max(classes, 1), order, dropout="inverted", name="caffenet" if order == pool_first(layers) else "bvlc_alexnet"
    )
    ours = learned(architecture)
    if len(weighted) != len(ours):
        raise ImportFormatError(
            path,
            f"it has {len(weighted)} layers with weights ({', '.join(layer.name for layer in weighted[:12]) or 'none'})"
            f", and {architecture.name} has {len(ours)}: {', '.join(ours)}",
        )
    architecture = replace(architecture, layers=tuple(_stated(path, order, found)))
    tensors, called = {}, {}
    for layer, our in zip(weighted, ours, strict=True):
        called[our] = layer.name
        if len(layer.blobs) != 2:
            raise ImportFormatError(path, f"layer {layer.name} has {len(layer.blobs)} arrays, not weights and biases")
        dimensions = 4 if our.startswith("conv") else 2
        for which, blob, count in zip(("weight", "bias"), layer.blobs, (dimensions, 1), strict=True):
            tensors[f"{our}.{which}"] = torch.from_numpy(blob.values.reshape(_without_ones(blob.shape, count)))
    weights = to_rgb(checked(path, architecture, tensors, called), architecture)
    image, words, remarks = mean_image(mean)
    return ImportedNet(architecture, weights, image, _preprocessing(words), source, remarks)


def mean_image(mean: str | None) -> tuple[NDArray[np.float32], str, tuple[str, ...]]:
    """Return a Caffe net's mean image (RGB, float32 [256, 256, 3]), what it is in words, and what was assumed.

    mean: a `.binaryproto` of 3x256x256 (or 3x1x1), BGR; three numbers "B,G,R"; None for ImageNet's mean colour.
    Raises ImportFormatError.
    """
    if mean is None:
        blue, green, red = IMAGENET_MEAN_BGR
        remark = (
            f"no --mean was given, so ImageNet's mean colour is subtracted (B {blue:.2f}, G {green:.2f}, R {red:.2f}): "
            "answers are closer to Caffe's with the mean image that the net was trained with, imagenet_mean.binaryproto"
        )
        return colour_image((red, green, blue)), "ImageNet's mean colour", (remark,)
    numbers = mean.split(",")
    if len(numbers) == 3 and not Path(mean).exists():
        try:
            blue, green, red = (float(number) for number in numbers)
        except ValueError:
            raise ImportFormatError(Path(mean), "a mean is a .binaryproto file, or three numbers B,G,R") from None
        return colour_image((red, green, blue)), f"the mean colour B {blue:g}, G {green:g}, R {red:g}", ()
    path = Path(mean)
    return read_mean(path), f"the mean image {path.name} (sha256 {Source.of('mean', path).sha256[:12]})", ()


def read_mean(path: Path) -> NDArray[np.float32]:
    """Read a mean image, a BlobProto of BGR 3x256x256 (or one colour, 3x1x1), as RGB float32 [256, 256, 3].

    Raises ImportFormatError.
    """
    expect(path, Kind.BLOB)
    with _reading(path):
        blob = _blob(_bytes(path))
    shape = _without_ones(blob.shape, 3)
    if shape not in ((3, SIZE, SIZE), (3, 1, 1)):
        raise ImportFormatError(
            path, f"the mean image has the shape {'x'.join(map(str, shape))}, and 3x{SIZE}x{SIZE} is taken"
        )
    if not np.isfinite(blob.values).all():
        raise ImportFormatError(path, "the mean image has values that are not finite: the file is broken")
    image = blob.values.reshape(shape)[::-1].transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(image, (SIZE, SIZE, 3)), np.float32)


def _preprocessing(mean: str) -> str:
    return (
        f"RGB 0-255, minus {mean} (its centre {CROP}x{CROP}); the net is Caffe's and wants BGR 227x227: its first "
        "kernels were turned to RGB, and 3 columns and rows of the mean colour are added on the right and at the bottom"
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The seam: what cannot be read becomes an ImportFormatError."""
    try:
        yield
    except WireError as exc:
        raise ImportFormatError(path, str(exc)) from exc
    except OSError as exc:
        raise ImportFormatError(path, exc.strerror or str(exc)) from exc


def _bytes(path: Path) -> memoryview:
    if path.stat().st_size > MAX_BYTES:
        raise WireError(f"it has {path.stat().st_size:,} bytes, and such a file has at most {MAX_BYTES:,}")
    return memoryview(path.read_bytes())


def _net(message: memoryview) -> tuple[str, list[_CaffeLayer]]:
    name, layers = "", []
    for field in fields(message):
        if field.id == _NET_NAME and field.wire == Wire.LENGTH:
            name = _string(field.data)
        elif field.id in (_LAYERS, _V1_LAYERS) and field.wire == Wire.LENGTH:
            layers.append(_layer(field.data, _NEW if field.id == _LAYERS else _OLD))
    return name, layers


def _layer(message: memoryview, meaning: dict[int, str]) -> _CaffeLayer:
    name, kind, blobs, settings = "", "", [], None
    for field in fields(message):
        match meaning.get(field.id), field.wire:
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
                raise WireError("it has the layout of 2013: run Caffe's upgrade_net_proto_binary on it first")
    return _CaffeLayer(name or "without a name", kind, tuple(blobs), settings)


def _blob(message: memoryview) -> Blob:
    shape: tuple[int, ...] | None = None
    old = [0, 0, 0, 0]  # num, channels, height, width
    numbers: list[NDArray[np.float32]] = []
    for field in fields(message):
        if field.id == 7 and field.wire == Wire.LENGTH:
            shape = tuple(number for entry in fields(field.data) if entry.id == 1 for number in _integers(entry))
        elif 1 <= field.id <= 4 and field.wire == Wire.VARINT:
            old[field.id - 1] = field.number
        elif field.id == 5 and field.wire in (Wire.LENGTH, Wire.FIXED32):
            numbers.append(_values(field.data, "<f4"))
        elif field.id == 8 and field.wire in (Wire.LENGTH, Wire.FIXED64):
            numbers.append(_values(field.data, "<f8").astype(np.float32))
    values = numbers[0] if len(numbers) == 1 else np.concatenate([np.empty(0, np.float32), *numbers])
    if shape is None:
        shape = tuple(old) if any(old) else (len(values),)
    if len(shape) > _MAX_DIMENSIONS:
        raise WireError(f"an array has {len(shape)} dimensions")
    count = 1
    for dimension in shape:
        count *= dimension
    if count != len(values):
        raise WireError(
            f"an array of the shape {'x'.join(map(str, shape))} has {len(values):,} values: the file is broken"
        )
    return Blob(shape, values)


def _values(data: memoryview, dtype: str) -> NDArray[np.float32]:
    if len(data) % np.dtype(dtype).itemsize:
        raise WireError("an array ends in the middle of a number: the file is broken")
    # A copy: the bytes of the file are let go, and torch wants memory that it may write.
    return np.frombuffer(data, dtype).copy()


def _integers(field: Field) -> list[int]:
    return [field.number] if field.wire == Wire.VARINT else varints(field.data)


def _string(data: memoryview) -> str:
    return bytes(data[:200]).decode("utf-8", "replace")


def _without_ones(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return `shape` with leading ones dropped down to `count` dimensions: old files write a bias as 1x1x1x96."""
    while len(shape) > count and shape[0] == 1:
        shape = shape[1:]
    return shape


def _order(
    path: Path, name: str, found: Sequence[_CaffeLayer], layers: tuple[Layer, ...], caffenet: bool
) -> tuple[Layer, ...]:
    """Return the table in the file's own order of norms and pools; by the net's name or `caffenet` if it has none."""
    other = pool_first(layers)
    kinds = [layer.kind for layer in found if layer.kind in _KINDS.values()]
    if not {"LRN", "Pooling"} & set(kinds):
        return other if caffenet or name.lower() == "caffenet" else layers
    for table in (layers, other):
        if kinds == [*(_KINDS[type(layer)] for layer in table), "InnerProduct"]:
            if caffenet and table == layers:
                raise ImportFormatError(path, "its norms come before its pools, so it is no CaffeNet: leave --caffenet")
            return table
    raise ImportFormatError(path, f"its layers are {', '.join(kinds)}: neither AlexNet's nor CaffeNet's")


def _stated(path: Path, order: Sequence[Layer], found: Sequence[_CaffeLayer]) -> Iterator[Layer]:
    """Yield the table with the norms as the file states them, after comparing all else that it states."""
    stated = {kind: [layer for layer in found if layer.kind == kind] for kind in _KINDS.values()}
    for layer in order:
        of_kind = stated[_KINDS[type(layer)]]
        caffe = of_kind.pop(0) if of_kind else None
        if caffe is None or caffe.settings is None:
            yield layer
            continue
        with _reading(path):
            yield _compare(path, layer, caffe.name, list(fields(caffe.settings)))


def _compare(path: Path, layer: Layer, name: str, settings: Sequence[Field]) -> Layer:
    def number(identity: int, default: int) -> int:
        values = [value for field in settings if field.id == identity for value in _integers(field)]
        return values[-1] if values else default

    def real(identity: int, default: float) -> float:
        return next((float32(f.data) for f in reversed(settings) if f.id == identity and f.data), default)

    match layer:
        case Conv():
            wanted = {"kernel": layer.size, "stride": layer.stride, "padding": layer.padding, "groups": layer.towers}
            stated = {"kernel": number(4, layer.size), "stride": number(6, 1), "padding": number(3, 0)}
            stated["groups"] = number(5, 1)
        case Pool():
            wanted = {"method (0: maximum)": 0, "kernel": layer.size, "stride": layer.stride, "padding": 0}
            stated = {"method (0: maximum)": number(1, 0), "kernel": number(2, 0), "stride": number(3, 1)}
            stated["padding"] = number(4, 0)
        case Norm():
            size, beta, region = number(1, 5), real(3, 0.75), number(4, 0)
            if size % 2 == 0 or abs(beta - 0.75) > 1e-6 or region != 0:
                raise ImportFormatError(
                    path, f"layer {name} normalises with size {size}, beta {beta:g}: only across channels with .75"
                )
            # Single precision in the file: back to the number that was meant.
            alpha = float(f"{real(2, 1.0):.7g}")
            return replace(layer, size=size, alpha=alpha / size, k=float(f"{real(5, 1.0):.7g}"))
        case _:
            return layer
    for what, value in wanted.items():
        if stated[what] != value:
            raise ImportFormatError(
                path, f"layer {name} has {what} {stated[what]}, and {layer.name} has {value}: it is another net"
            )
    return layer
