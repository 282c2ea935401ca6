"""Public weight files, made here in their own layouts, and the nets' answers computed in torch from the originals.

Nothing of the importers is used: the bytes are written field by field, and `caffe_answers` and `torchvision_answers`
do with torch's own layers what Caffe and torchvision do with the same weights.
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

Weights = dict[str, Tensor]  # conv1.weight, conv1.bias, ... fc8.bias, as the file's own framework has them
LEARNED = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
_FEW = {"conv1": 8, "conv2": 12, "conv3": 8, "conv4": 8, "conv5": 6, "fc6": 24}


def small(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the table with few kernels; fc7 stays 4096, as served."""
    return tuple(
        replace(layer, kernels=_FEW[layer.name])
        if isinstance(layer, Conv)
        else replace(layer, neurons=_FEW.get(layer.name, layer.neurons))
        if isinstance(layer, Hidden)
        else layer
        for layer in layers
    )


SMALL_ALEXNET = small(ALEXNET_LAYERS)
SMALL_OWT = small(OWT_LAYERS)


def draw_weights(layers: Sequence[Layer], classes: int, maps: int = 36, seed: int = 0) -> Weights:
    """Draw weights whose answers differ from picture to picture; the first layer is for pixels of about +-100."""
    random = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    below, inputs = 3, 0
    flat = False
    for layer in (*layers, Hidden("fc8", classes)):
        if isinstance(layer, Conv):
            shape: tuple[int, ...] = (layer.kernels, below // layer.towers, layer.size, layer.size)
            below = layer.kernels
        elif isinstance(layer, Hidden):
            shape = (layer.neurons, below if flat else below * maps)
            below, flat = layer.neurons, True
        else:
            continue
        inputs = int(np.prod(shape[1:]))
        deviation = (2 / inputs) ** 0.5
        weights[f"{layer.name}.weight"] = torch.empty(shape).normal_(0, deviation, generator=random)
        weights[f"{layer.name}.bias"] = torch.empty(shape[0]).normal_(0, 0.1, generator=random)
    return weights


def spread(weights: Weights, answers: Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]]) -> Weights:
    """Scale fc8 so that probabilities are neither equal nor all in one class."""
    fc7 = answers(pictures(2))[1]
    logits = functional.linear(fc7, weights["fc8.weight"])
    weights["fc8.weight"] *= 2 / logits.std()
    return weights


def pictures(count: int, seed: int = 5) -> NDArray[np.uint8]:
    """Return pictures, uint8 [count, 224, 224, 3] RGB, coloured differently."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 14, 14, 3))
    fine = coarse.repeat(16, 1).repeat(16, 2) + random.integers(-20, 20, (count, 224, 224, 3))
    return np.asarray(np.clip(fine, 0, 255), np.uint8)


def caffe_answers(
    weights: Mapping[str, Tensor],
    mean_bgr: NDArray[np.float32],
    rgb: NDArray[np.uint8],
    *,
    size: int = 227,
    pool_before_norm: bool = False,
    alpha: float = 1e-4,
    k: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (probabilities, fc7) of Caffe's net for pictures, uint8 [n, 224, 224, 3], in torch's own layers.

    mean_bgr: [3, 256, 256] or [3, 1, 1]. size 227: the mean colour fills what 224 pixels lack. Pooling rounds up.
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


# ---- Caffe's files, field by field (numbers of caffe.proto) ----


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def tagged(field: int, data: bytes | str) -> bytes:
    """A field with a length: text, bytes, a message or packed numbers."""
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def whole(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def real(field: int, number: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", number)


def blob(values: Tensor, form: str = "new") -> bytes:
    """A BlobProto: "new" (packed, shape), "legacy" (num, channels, height, width), "unpacked", or "double"."""
    array = values.numpy()
    if form == "double":
        data = tagged(8, array.astype("<f8").tobytes())
    elif form == "unpacked":
        rows = np.empty((array.size, 5), np.uint8)
        rows[:, 0] = 5 << 3 | 5
        rows[:, 1:] = array.astype("<f4").reshape(-1, 1).view(np.uint8)
        data = rows.tobytes()
    else:
        data = tagged(5, array.astype("<f4").tobytes())
    if form == "legacy":
        four = (1,) * (4 - array.ndim) + array.shape
        return b"".join(whole(index, size) for index, size in enumerate(four, start=1)) + data
    return data + tagged(7, tagged(1, b"".join(varint(size) for size in array.shape)))


def caffe_layer(
    name: str, kind: str, blobs: Sequence[bytes] = (), settings: tuple[int, bytes] | None = None, *, old: bool = False
) -> bytes:
    """A LayerParameter in a NetParameter, or with `old` a V1LayerParameter. settings: (field in the new one, bytes)."""
    if not old:
        message = tagged(1, name) + tagged(2, kind) + tagged(3, "below") + b"".join(tagged(7, entry) for entry in blobs)
        return tagged(100, message + (tagged(*settings) if settings else b""))
    kinds = {"Convolution": 4, "Data": 5, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18, "Dropout": 6}
    message = tagged(2, "below") + tagged(4, name) + whole(5, kinds[kind])
    message += b"".join(tagged(6, entry) for entry in blobs)
    fields = {106: 10, 118: 18, 121: 19}
    return tagged(2, message + (tagged(fields[settings[0]], settings[1]) if settings else b""))


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
    """Write a `.caffemodel`. old: the layout before LayerParameter. bare: weights alone, no other layers."""

    def layer(name: str, kind: str, settings: tuple[int, bytes] | None = None) -> bytes:
        ours = "fc8" if name == fc8 else name
        blobs = [blob(weights[f"{ours}.{which}"], form) for which in ("weight", "bias") if f"{ours}.{which}" in weights]
        return caffe_layer(name, kind, blobs, None if bare else settings, old=old)

    def convolution(name: str) -> bytes:
        kernel, step, pad, groups = CONVOLUTIONS[name]
        step = stride if name == "conv1" else step
        settings = whole(1, 1) + whole(4, kernel) + whole(6, step)
        settings += whole(3, pad) if pad else b""
        settings += whole(5, groups) if groups > 1 else b""
        return layer(name, "Convolution", (106, settings)) + (b"" if bare else layer("relu" + name[-1], "ReLU"))

    def between(number: int) -> bytes:
        pool = layer(f"pool{number}", "Pooling", (121, whole(1, 0) + whole(2, 3) + whole(3, 2)))
        norm = layer(f"norm{number}", "LRN", (118, whole(1, 5) + real(2, alpha) + real(3, 0.75)))
        return b"" if bare else pool + norm if pool_before_norm else norm + pool

    parts = [tagged(1, net), b"" if bare else layer("data", "Data")]
    parts += [convolution("conv1"), between(1), convolution("conv2"), between(2)]
    parts += [convolution(name) for name in ("conv3", "conv4", "conv5")]
    parts += [b"" if bare else layer("pool5", "Pooling", (121, whole(2, 3) + whole(3, 2)))]
    for name in ("fc6", "fc7", fc8):
        parts += [layer(name, "InnerProduct", (117, whole(1, 1)) if not old else None)]
        parts += [] if bare or name == fc8 else [layer("drop" + name[-1], "Dropout")]
    path.write_bytes(b"".join(parts))
    return path


def write_mean(path: Path, bgr: NDArray[np.float32]) -> Path:
    """Write a `.binaryproto` of an image [3, height, width], BGR, as Caffe's compute_image_mean does."""
    path.write_bytes(blob(torch.from_numpy(bgr)[None], "legacy"))
    return path


# ---- the ONNX zoo's file ----


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
    """Write a graph shaped as bvlcalexnet-*.onnx: data_0 -> softmax, and pools that hang over the edge."""
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
    constants = {
        f"{name.replace('.weight', '_w').replace('.bias', '_b')}_0": value.numpy() for name, value in weights.items()
    }
    constants["flat_shape"] = np.array([1, -1], np.int64)
    classes = len(weights["fc8.bias"])
    inputs = [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, size, size])]
    if opset < 9:  # constants were inputs too
        inputs += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in constants.items()
        ]
    graph = helper.make_graph(
        nodes,
        "alexnet",
        inputs,
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, [1, classes])],
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


# ---- torchvision's net ----


def torchvision_alexnet(classes: int, widths: Sequence[int] = (64, 192, 384, 256, 256), fc6: int = 4096) -> nn.Module:
    """Return a module with the layers, and so the names of weights, of torchvision's alexnet.py."""
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


def torchvision_answers(net: nn.Module, rgb: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return (probabilities, fc7) with torchvision's transforms: 0-1, minus mean, over deviation."""
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        x = net.get_submodule("avgpool")(net.get_submodule("features")(x)).flatten(1)
        fc7 = x
        for number, layer in enumerate(net.get_submodule("classifier").children()):
            x = layer(x)
            fc7 = x if number == 5 else fc7
        return x.softmax(1), fc7
