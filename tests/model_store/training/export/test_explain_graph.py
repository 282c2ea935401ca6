"""`explain.onnx` computes what automatic differentiation gives in torch, for every kind of net that can be exported."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor

from model_store.errors import CheckpointError, TrainingError
from model_store.runtime.explainer import EXPLAIN_FILE
from model_store.runtime.openvino_module import CORE
from model_store.store import ModelStore
from model_store.training.export.explain_graph import add_explanations, write_explain_graph
from model_store.training.export.served_graph import write_served_graph
from model_store.training.importers.imported_net import OWT_LAYERS, pool_first
from model_store.training.nets.alexnet import AlexNet, Architecture, Conv, Hidden, Layer, Pool
from model_store.training.nets.variants import Variant, variant_layers
from tests.support.tiny_model import publish_tiny_model, tiny_draft, write_tiny_graph
from tests.support.training.run_folder import SMALL_LAYERS, small_architecture, small_net

Array = np.ndarray[Any, np.dtype[Any]]
MEAN = np.random.default_rng(1).uniform(60, 160, (256, 256, 3)).astype(np.float32)
VARIANTS: tuple[Variant, ...] = (
    "full",
    "one-tower",
    "no-lrn",
    "pool-2x2",
    "no-conv3",
    "no-conv4",
    "no-conv5",
    "sixth-conv",
)


def autograd(net: AlexNet, pixels: Array, classes: Array | None, near: Array | None) -> tuple[Array, Array]:
    """Return Grad-CAM in float64 from hooks in torch, at the maps that the last pooling or fc6 reads.

    Also returns the largest sum of the terms' absolute values in a cell of each map.
    """
    layers = net.architecture.layers
    last = max(number for number, layer in enumerate(layers) if isinstance(layer, Conv))
    reader = layers[last + 1]
    size = net.architecture.maps()[last]
    kept: list[Tensor] = []

    def keep(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        kept.append(inputs[0])

    hook = net.get_submodule(reader.name).register_forward_pre_hook(keep)
    centered = (pixels.astype(np.float64) - MEAN[16:240, 16:240]).transpose(0, 3, 1, 2)
    net = copy.deepcopy(net).double().requires_grad_(True)
    logits, fc7 = net.forward_both(torch.from_numpy(np.ascontiguousarray(centered)))
    hook.remove()
    if near is not None:
        output = -(fc7 - torch.from_numpy(near)).norm(dim=1).sum()
    else:
        wanted = logits.argmax(1) if classes is None else torch.from_numpy(classes)
        output = logits.gather(1, wanted[:, None]).sum()
    output.backward()
    [maps] = kept
    shape = (len(pixels), size.channels, -1, size.size) if maps.ndim == 2 else maps.shape
    assert maps.grad is not None
    values, gradient = (each.reshape(shape)[..., : size.size, : size.size] for each in (maps.detach(), maps.grad))
    weights = gradient.sum((2, 3), keepdim=True) / size.size**2
    terms = weights * values
    return terms.sum(1).relu().numpy(), terms.abs().sum(1).amax((1, 2)).numpy()


def explain(folder: Path, pixels: Array, classes: Array | None = None, near: Array | None = None) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(folder / EXPLAIN_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    [width] = [entry.shape[1] for entry in session.get_inputs() if entry.name == "near"]
    return dict(zip(names, session.run(names, inputs_of(pixels, classes, near, width)), strict=True))


def inputs_of(pixels: Array, classes: Array | None, near: Array | None, width: int = 4096) -> dict[str, Array]:
    count = len(pixels)
    return {
        "pixels": pixels,
        "class": np.full(count, -1, np.int64) if classes is None else classes,
        "near": np.zeros((count, width), np.float32) if near is None else near,
        "by_distance": np.full((count, 1), near is not None),
    }


def random_pixels(count: int, seed: int = 0) -> Array:
    """Return smooth images with noise, because pooling hardly has unequal values in others."""
    random = np.random.default_rng([seed, count])
    coarse = random.integers(0, 256, (count, 7, 7, 3)).repeat(32, 1).repeat(32, 2)
    return np.clip(coarse + random.normal(0, 10, coarse.shape), 0, 255).astype(np.uint8)


def check(net: AlexNet, folder: Path, pixels: Array, classes: Array | None = None, near: Array | None = None) -> None:
    """Compare the maps with torch's: to 1e-5 of the largest value, or of a tenth of the terms if they cancel out."""
    expected, terms = autograd(net, pixels, classes, near)
    heat = explain(folder, pixels, classes, near)["heat"]
    largest = expected.max(axis=(1, 2))
    assert heat.shape == expected.shape
    assert (largest > 0).any()
    worst = np.abs(heat - expected).max(axis=(1, 2))
    assert (worst <= 1e-5 * np.maximum(largest, 0.1 * terms)).all(), (worst, largest, terms)


@pytest.mark.parametrize("dropout", ["paper", "inverted"])
def test_heat_maps_equal_those_of_automatic_differentiation(tmp_path: Path, dropout: Any) -> None:
    net = small_net(small_architecture(dropout, 0.01))
    write_served_graph(net, MEAN, tmp_path)
    pixels = random_pixels(5)
    check(net, tmp_path, pixels)
    for index in range(3):
        check(net, tmp_path, pixels, classes=np.full(5, index))
    near = explain(tmp_path, random_pixels(5, seed=1))["fc7"]
    check(net, tmp_path, pixels, near=near)


def test_heat_maps_equal_those_of_captum(tmp_path: Path) -> None:
    net = small_net(small_architecture("inverted", 0.01))
    write_served_graph(net, MEAN, tmp_path)
    pixels, classes = random_pixels(3), np.array([0, 2, 1])
    layers = net.architecture.layers
    last = max(number for number, layer in enumerate(layers) if isinstance(layer, Conv))
    peer = LayerGradCam(lambda images: net.forward_both(images)[0], net.get_submodule(layers[last + 1].name))
    centered = (pixels - MEAN[16:240, 16:240]).transpose(0, 3, 1, 2)
    expected = peer.attribute(
        torch.from_numpy(np.ascontiguousarray(centered)),
        target=torch.from_numpy(classes),
        attribute_to_layer_input=True,
        relu_attributions=True,
    )
    assert isinstance(expected, Tensor)
    heat = explain(tmp_path, pixels, classes)["heat"]
    assert (heat.max(axis=(1, 2)) > 0).all()
    assert heat == pytest.approx(expected[:, 0].detach().numpy(), abs=1e-5 * float(heat.max()))


def narrow(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers with few kernels and neurons."""
    architecture = Architecture(3, layers).scaled(1 / 16)
    return tuple(replace(layer, neurons=64) if isinstance(layer, Hidden) else layer for layer in architecture.layers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_net_can_be_explained(tmp_path: Path, variant: Variant) -> None:
    check_layers(tmp_path, narrow(variant_layers(variant)))


EDGE_POOL = tuple(replace(layer, edge=1) if isinstance(layer, Pool) else layer for layer in SMALL_LAYERS)
ONE_HIDDEN = tuple(layer for layer in SMALL_LAYERS if layer.name != "fc6")


@pytest.mark.parametrize(
    "layers",
    [narrow(OWT_LAYERS), narrow(pool_first(variant_layers("full"))), EDGE_POOL, ONE_HIDDEN],
    ids=["torchvision", "caffenet", "caffe2", "one-hidden-layer"],
)
def test_imported_nets_can_be_explained(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    check_layers(tmp_path, layers)


def check_layers(folder: Path, layers: tuple[Layer, ...]) -> None:
    net = small_net(Architecture(3, layers, dropout="inverted", input_scale=1 / 64))
    write_served_graph(net, MEAN, folder)
    pixels = random_pixels(3)
    check(net, folder, pixels, classes=np.array([2, 0, 1]))
    check(net, folder, pixels, near=explain_fc7(folder, random_pixels(3, seed=2)))


def explain_fc7(folder: Path, pixels: Array) -> Array:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    [fc7] = session.run(["fc7"], {"pixels": pixels})
    return np.asarray(fc7)


def test_equal_values_in_a_pooling_window_do_not_change_the_result(tmp_path: Path) -> None:
    net = small_net(small_architecture())
    with torch.no_grad():
        net.get_parameter("conv3.weight").zero_()
        net.get_parameter("conv3.bias").abs_()  # each map has one value, so all cells of every window are equal
    write_served_graph(net, MEAN, tmp_path)
    check(net, tmp_path, random_pixels(2), classes=np.array([0, 1]))


def test_probabilities_and_fc7_are_those_of_the_served_graph(tmp_path: Path) -> None:
    write_served_graph(small_net(small_architecture()), MEAN, tmp_path)
    pixels = random_pixels(4)
    found = explain(tmp_path, pixels)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    probabilities, fc7 = session.run(["probabilities", "fc7"], {"pixels": pixels})
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_allclose(found["fc7"], fc7, atol=1e-6 * fc7.max())
    assert found["explained"].tolist() == probabilities.argmax(1).tolist()


def test_openvino_computes_the_same_from_the_same_weights_file(tmp_path: Path) -> None:
    write_served_graph(small_net(small_architecture()), MEAN, tmp_path)
    pixels = random_pixels(2)
    inputs = inputs_of(pixels, np.array([1, 2]), None)
    compiled = CORE.compile_model(str(tmp_path / EXPLAIN_FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs)["heat"]
    expected = explain(tmp_path, pixels, np.array([1, 2]))["heat"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_weights_are_not_stored_twice(tmp_path: Path) -> None:
    write_served_graph(small_net(small_architecture()), MEAN, tmp_path)
    graphs = [onnx.load_model(tmp_path / name, load_external_data=False).graph for name in ("model.onnx", EXPLAIN_FILE)]
    served, explaining = ({t.name: t for t in graph.initializer} for graph in graphs)
    assert all(explaining[name] == tensor for name, tensor in served.items())
    added = [tensor.name for name, tensor in explaining.items() if name not in served and len(tensor.raw_data) > 64]
    assert added == ["explain.fc6.weight.summed"]


def test_a_graph_without_convolutions_is_refused(tmp_path: Path) -> None:
    write_tiny_graph(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.onnx does not end with .* cannot be explained"):
        write_explain_graph(tmp_path)
    assert not (tmp_path / EXPLAIN_FILE).exists()


def test_a_version_of_an_earlier_release_is_published_again_with_the_same_fingerprint(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with store.staging("old") as staged:
        write_served_graph(small_net(small_architecture()), MEAN, staged)
        (staged / EXPLAIN_FILE).unlink()
        old = store.publish(staged, tiny_draft("old", ("a", "b", "c")))
    new = add_explanations(old, store)
    assert (new.id, new.fingerprint, new.manifest.parent_version) == ("old:2", old.fingerprint, "old:1")
    assert set(new.manifest.files) - set(old.manifest.files) == {EXPLAIN_FILE}
    assert new.manifest.metrics == old.manifest.metrics
    assert not store.get("old", 1).path.joinpath(EXPLAIN_FILE).exists()
    with pytest.raises(TrainingError, match="old:2 has the graph for explanations already"):
        add_explanations(new, store)
    with pytest.raises(CheckpointError):
        add_explanations(publish_tiny_model(tmp_path), store)
    assert [artifact.id for artifact in store.list()] == ["old:1", "old:2", "tiny:1"]
