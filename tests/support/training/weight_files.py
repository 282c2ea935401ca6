"""Write weight files in the layouts of Caffe, the ONNX zoo and torchvision, and compute the expected outputs in torch.

The importers are not used: files are written field by field, and `caffe_outputs` and `torchvision_outputs` compute with
torch's own layers what Caffe and torchvision compute with the same weights.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from model_store.training.importers.imported_net import ALEXNET_LAYERS, OWT_LAYERS
from model_store.training.nets.alexnet import Conv, Hidden, Layer

Weights = dict[str, Tensor]  # conv1.weight, conv1.bias, ... fc8.bias, as in the file's own framework
LEARNED = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
_SMALL_SIZES = {"conv1": 8, "conv2": 12, "conv3": 8, "conv4": 8, "conv5": 6, "fc6": 24}


def small(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers with few kernels. fc7 keeps 4096 neurons, as served."""
    return tuple(
        replace(layer, kernels=_SMALL_SIZES[layer.name])
        if isinstance(layer, Conv)
        else replace(layer, neurons=_SMALL_SIZES.get(layer.name, layer.neurons))
        if isinstance(layer, Hidden)
        else layer
        for layer in layers
    )


SMALL_ALEXNET = small(ALEXNET_LAYERS)
SMALL_OWT = small(OWT_LAYERS)


def random_weights(layers: Sequence[Layer], classes: int, maps: int = 36, seed: int = 0) -> Weights:
    """Return random weights whose outputs differ between images. The first layer expects pixels of about +-100."""
    random = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    channels, flat = 3, False
    for layer in (*layers, Hidden("fc8", classes)):
        if isinstance(layer, Conv):
            shape: tuple[int, ...] = (layer.kernels, channels // layer.towers, layer.size, layer.size)
            channels = layer.kernels
        elif isinstance(layer, Hidden):
            shape = (layer.neurons, channels if flat else channels * maps)
            channels, flat = layer.neurons, True
        else:
            continue
        inputs = int(np.prod(shape[1:]))
        deviation = (2 / inputs) ** 0.5
        weights[f"{layer.name}.weight"] = torch.empty(shape).normal_(0, deviation, generator=random)
        weights[f"{layer.name}.bias"] = torch.empty(shape[0]).normal_(0, 0.1, generator=random)
    return weights


def with_spread_logits(weights: Weights, outputs: Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]]) -> Weights:
    """Scale fc8 so that probabilities are neither all equal nor all in one class."""
    fc7 = outputs(random_images(2))[1]
    logits = functional.linear(fc7, weights["fc8.weight"])
    weights["fc8.weight"] *= 2 / logits.std()
    return weights


def random_images(count: int, seed: int = 5) -> NDArray[np.uint8]:
    """Return images of different colors, uint8 [count, 224, 224, 3] RGB."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 14, 14, 3))
    fine = coarse.repeat(16, 1).repeat(16, 2) + random.integers(-20, 20, (count, 224, 224, 3))
    return np.asarray(np.clip(fine, 0, 255), np.uint8)


def caffe_outputs(
    weights: Mapping[str, Tensor],
    mean_bgr: NDArray[np.float32],
    rgb: NDArray[np.uint8],
    *,
    size: int = 227,
    pool_before_norm: bool = False,
    alpha: float = 1e-4,
    k: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (probabilities, fc7) of Caffe's net for images, uint8 [n, 224, 224, 3], computed with torch's own layers.

    mean_bgr: [3, 256, 256] or [3, 1, 1]. size: images are padded to this size with the mean color. Pooling rounds up.
    """
    image = np.broadcast_to(mean_bgr, (3, 256, 256))[:, 16:240, 16:240]
    bgr = rgb[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - image
    x = functional.pad(torch.from_numpy(bgr), (0, size - 224, 0, size - 224))

    def norm(y: Tensor) -> Tensor:
        return functional.local_response_norm(y, 5, alpha=alpha, beta=0.75, k=k)

    def pool(y: Tensor) -> Tensor:
        return functional.max_pool2d(y, 3, 2, ceil_mode=True)

    def conv(y: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight = weights[f"{name}.weight"]
        groups = y.shape[1] // weight.shape[1]
        return functional.conv2d(y, weight, weights[f"{name}.bias"], stride, padding, groups=groups).relu()

    steps = (pool, norm) if pool_before_norm else (norm, pool)
    x = conv(x, "conv1", stride=4)
    x = steps[1](steps[0](x))
    x = conv(x, "conv2", padding=2)
    x = steps[1](steps[0](x))
    for name in ("conv3", "conv4", "conv5"):
        x = conv(x, name, padding=1)
    x = pool(x).flatten(1)
    x = functional.linear(x, weights["fc6.weight"], weights["fc6.bias"]).relu()
    fc7 = functional.linear(x, weights["fc7.weight"], weights["fc7.bias"]).relu()
    return functional.linear(fc7, weights["fc8.weight"], weights["fc8.bias"]).softmax(1), fc7


# Caffe's files, with the field numbers of caffe.proto


def encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def length_field(field: int, data: bytes | str) -> bytes:
    """Return a length-delimited field: text, bytes, a message or packed numbers."""
    data = data.encode() if isinstance(data, str) else data
    return encode_varint(field << 3 | 2) + encode_varint(len(data)) + data


def varint_field(field: int, number: int) -> bytes:
    return encode_varint(field << 3) + encode_varint(number)


def float_field(field: int, number: float) -> bytes:
    return encode_varint(field << 3 | 5) + struct.pack("<f", number)


def blob(values: Tensor, form: str = "new") -> bytes:
    """Return a BlobProto: "new" (packed, shape), "legacy" (num, channels, height, width), "unpacked" or "double"."""
    array = values.numpy()
    if form == "double":
        data = length_field(8, array.astype("<f8").tobytes())
    elif form == "unpacked":
        rows = np.empty((array.size, 5), np.uint8)
        rows[:, 0] = 5 << 3 | 5
        rows[:, 1:] = array.astype("<f4").reshape(-1, 1).view(np.uint8)
        data = rows.tobytes()
    else:
        data = length_field(5, array.astype("<f4").tobytes())
    if form == "legacy":
        four = (1,) * (4 - array.ndim) + array.shape
        return b"".join(varint_field(index, size) for index, size in enumerate(four, start=1)) + data
    return data + length_field(7, length_field(1, b"".join(encode_varint(size) for size in array.shape)))


def caffe_layer(
    name: str, kind: str, blobs: Sequence[bytes] = (), settings: tuple[int, bytes] | None = None, *, old: bool = False
) -> bytes:
    """Return a LayerParameter of a NetParameter, or with `old` a V1LayerParameter. settings: (new field ID, bytes)."""
    if not old:
        message = (
            length_field(1, name)
            + length_field(2, kind)
            + length_field(3, "input")
            + b"".join(length_field(7, entry) for entry in blobs)
        )
        return length_field(100, message + (length_field(*settings) if settings else b""))
    kinds = {"Convolution": 4, "Data": 5, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18, "Dropout": 6}
    message = length_field(2, "input") + length_field(4, name) + varint_field(5, kinds[kind])
    message += b"".join(length_field(6, entry) for entry in blobs)
    fields = {106: 10, 118: 18, 121: 19}
    return length_field(2, message + (length_field(fields[settings[0]], settings[1]) if settings else b""))


# Kernel, stride, padding and groups.
CONVOLUTIONS = {
    "conv1": (11, 4, 0, 1),
    "conv2": (5, 1, 2, 2),
    "conv3": (3, 1, 1, 1),
    "conv4": (3, 1, 1, 2),
    "conv5": (3, 1, 1, 2),
}


def write_caffemodel(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    form: str = "new",
    old: bool = False,
    pool_before_norm: bool = False,
    net: str = "AlexNet",
    bare: bool = False,
    fc8: str = "fc8",
    alpha: float = 1e-4,
    stride: int = 4,
) -> Path:
    """Write a `.caffemodel`. old: the layout before LayerParameter. bare: only layers with weights."""

    def layer(name: str, kind: str, settings: tuple[int, bytes] | None = None) -> bytes:
        own_name = "fc8" if name == fc8 else name
        blobs = [
            blob(weights[f"{own_name}.{which}"], form)
            for which in ("weight", "bias")
            if f"{own_name}.{which}" in weights
        ]
        return caffe_layer(name, kind, blobs, None if bare else settings, old=old)

    def convolution(name: str) -> bytes:
        kernel, step, pad, groups = CONVOLUTIONS[name]
        step = stride if name == "conv1" else step
        settings = varint_field(1, 1) + varint_field(4, kernel) + varint_field(6, step)
        settings += varint_field(3, pad) if pad else b""
        settings += varint_field(5, groups) if groups > 1 else b""
        return layer(name, "Convolution", (106, settings)) + (b"" if bare else layer("relu" + name[-1], "ReLU"))

    def norm_and_pool(number: int) -> bytes:
        pool = layer(f"pool{number}", "Pooling", (121, varint_field(1, 0) + varint_field(2, 3) + varint_field(3, 2)))
        norm = layer(f"norm{number}", "LRN", (118, varint_field(1, 5) + float_field(2, alpha) + float_field(3, 0.75)))
        return b"" if bare else pool + norm if pool_before_norm else norm + pool

    parts = [length_field(1, net), b"" if bare else layer("data", "Data")]
    parts += [convolution("conv1"), norm_and_pool(1), convolution("conv2"), norm_and_pool(2)]
    parts += [convolution(name) for name in ("conv3", "conv4", "conv5")]
    parts += [b"" if bare else layer("pool5", "Pooling", (121, varint_field(2, 3) + varint_field(3, 2)))]
    for name in ("fc6", "fc7", fc8):
        parts += [layer(name, "InnerProduct", (117, varint_field(1, 1)) if not old else None)]
        parts += [] if bare or name == fc8 else [layer("drop" + name[-1], "Dropout")]
    path.write_bytes(b"".join(parts))
    return path


def write_mean(path: Path, bgr: NDArray[np.float32]) -> Path:
    """Write a `.binaryproto` of a BGR image [3, height, width], as Caffe's compute_image_mean does."""
    path.write_bytes(blob(torch.from_numpy(bgr)[None], "legacy"))
    return path


# The ONNX zoo's file


def write_zoo_model(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    size: int = 224,
    pool_before_norm: bool = False,
    ceil_mode: bool = False,
    opset: int = 12,
    softmax: bool = True,
) -> Path:
    """Write a graph like bvlcalexnet-*.onnx: from data_0 to softmax, with pooling windows that extend over the edge."""
    nodes: list[onnx.NodeProto] = []
    current = "data_0"

    def add(operator: str, extra: Sequence[str] = (), outputs: int = 1, **attributes: Any) -> None:
        nonlocal current
        names = [f"n{len(nodes)}_{index}" for index in range(outputs)]
        nodes.append(helper.make_node(operator, [current, *extra], names, name="", **attributes))
        current = names[0]

    def conv(name: str) -> None:
        kernel, stride, pad, groups = CONVOLUTIONS[name]
        add(
            "Conv",
            [f"{name}_w_0", f"{name}_b_0"],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=groups,
        )
        add("Relu")

    def norm() -> None:
        add("LRN", alpha=1e-4, beta=0.75, bias=1.0, size=5)

    def pool() -> None:
        rounding: dict[str, Any] = {"ceil_mode": 1} if ceil_mode else {"pads": [0, 0, 1, 1]}
        add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], **rounding)

    for number in (1, 2):
        conv(f"conv{number}")
        for step in (pool, norm) if pool_before_norm else (norm, pool):
            step()
    for name in ("conv3", "conv4", "conv5"):
        conv(name)
    pool()
    add("Reshape", ["flat_shape"])
    for name in ("fc6", "fc7"):
        add("Gemm", [f"{name}_w_0", f"{name}_b_0"], transB=1)
        add("Relu")
        add("Dropout", outputs=2 if opset < 12 else 1)
    add("Gemm", ["fc8_w_0", "fc8_b_0"], transB=1)
    if softmax:
        add("Softmax", axis=1)
    return _save_zoo_graph(path, nodes, current, weights, size=size, opset=opset)


def _save_zoo_graph(
    path: Path, nodes: list[onnx.NodeProto], output: str, weights: Mapping[str, Tensor], *, size: int, opset: int
) -> Path:
    """Write the nodes with the weights as constants; `output` is the name of the last node's output."""
    constants = {
        f"{name.replace('.weight', '_w').replace('.bias', '_b')}_0": value.numpy() for name, value in weights.items()
    }
    constants["flat_shape"] = np.array([1, -1], np.int64)
    classes = len(weights["fc8.bias"])
    inputs = [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, size, size])]
    if opset < 9:  # older graphs list constants as inputs
        inputs += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in constants.items()
        ]
    graph = helper.make_graph(
        nodes,
        "alexnet",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=3 if opset < 9 else 7,
        producer_name="onnx-caffe2",
    )
    onnx.save_model(model, path)
    return path


# torchvision's net


def torchvision_alexnet(classes: int, widths: Sequence[int] = (64, 192, 384, 256, 256), fc6: int = 4096) -> nn.Module:
    """Return a module with the layers and parameter names of torchvision's alexnet.py."""
    one, two, three, four, five = widths
    return nn.ModuleDict(
        {
            "features": nn.Sequential(
                nn.Conv2d(3, one, 11, 4, 2),
                nn.ReLU(),
                nn.MaxPool2d(3, 2),
                nn.Conv2d(one, two, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(3, 2),
                nn.Conv2d(two, three, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(three, four, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(four, five, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(3, 2),
            ),
            "avgpool": nn.AdaptiveAvgPool2d((6, 6)),
            "classifier": nn.Sequential(
                nn.Dropout(),
                nn.Linear(five * 36, fc6),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(fc6, 4096),
                nn.ReLU(),
                nn.Linear(4096, classes),
            ),
        }
    ).eval()


def torchvision_outputs(net: nn.Module, rgb: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return (probabilities, fc7) after torchvision's transforms: scale to 0-1, subtract mean, divide by deviation."""
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        x = net.get_submodule("avgpool")(net.get_submodule("features")(x)).flatten(1)
        fc7 = x
        for number, layer in enumerate(net.get_submodule("classifier").children()):
            x = layer(x)
            fc7 = x if number == 5 else fc7
        return x.softmax(1), fc7
