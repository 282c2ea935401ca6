"""The served graph outputs what the trained net outputs in torch, with the served inputs, outputs and operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from model_store.errors import ShapeError
from model_store.training.export.served_graph import write_served_graph
from model_store.training.nets.alexnet import AlexNet, Architecture, Dropout, initialise
from tests.support.training.run_folder import small_architecture, small_net

# A plain export writes normalization with Pow, Pad and three-dimensional pooling, which are slow.
FAST_OPERATORS = {
    "Add",
    "AveragePool",
    "Reshape",
    "Transpose",
    "Cast",
    "Sub",
    "Mul",
    "Conv",
    "Relu",
    "Sqrt",
    "Div",
    "MaxPool",
    "Flatten",
    "Gemm",
    "Softmax",
}
Array = np.ndarray[Any, np.dtype[Any]]
MEAN = np.random.default_rng(1).uniform(60, 160, (256, 256, 3)).astype(np.float32)


def random_pixels(count: int) -> Array:
    return np.random.default_rng(count).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def graph_outputs(folder: Path, pixels: Array) -> tuple[Array, Array]:
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    probabilities, fc7 = session.run(["probabilities", "fc7"], {"pixels": pixels})
    return probabilities, fc7


def torch_outputs(net: AlexNet, pixels: Array) -> tuple[Array, Array]:
    centered = (pixels.astype(np.float32) - MEAN[16:240, 16:240]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits, fc7 = net.forward_both(torch.from_numpy(np.ascontiguousarray(centered)))
    return logits.softmax(1).numpy(), fc7.numpy()


@pytest.mark.parametrize("dropout", ["paper", "inverted"])
@pytest.mark.parametrize("input_scale", [1.0, 1 / 64, 0.01])
def test_graph_outputs_match_the_trained_net(tmp_path: Path, dropout: Dropout, input_scale: float) -> None:
    net = small_net(small_architecture(dropout, input_scale))
    write_served_graph(net, MEAN, tmp_path)
    for count in (1, 2, 5):
        pixels = random_pixels(count)
        probabilities, fc7 = graph_outputs(tmp_path, pixels)
        expected_probabilities, expected_fc7 = torch_outputs(net, pixels)
        assert probabilities.dtype == fc7.dtype == np.float32
        assert expected_probabilities.max() > 0.4  # not uniform, so that a difference is visible
        np.testing.assert_allclose(probabilities, expected_probabilities, atol=2e-6)
        np.testing.assert_allclose(fc7, expected_fc7, atol=2e-5 * expected_fc7.max())


def test_the_graph_has_the_served_interface_and_only_fast_operators(tmp_path: Path) -> None:
    write_served_graph(small_net(small_architecture()), MEAN, tmp_path)
    model = onnx.load_model(tmp_path / "model.onnx", load_external_data=False)
    assert {node.op_type for node in model.graph.node} == FAST_OPERATORS
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert (model.producer_name, model.producer_version) == ("fc7", "0.1.0")
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "pixels": (TensorProto.UINT8, ["N", 224, 224, 3]),
        "probabilities": (TensorProto.FLOAT, ["N", 3]),
        "fc7": (TensorProto.FLOAT, ["N", 4096]),
    }
    inside = {tensor.name for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL}
    assert inside == {"norm2.rows.shape", "norm2.shape"}
    assert (tmp_path / "model.onnx").stat().st_size < 10_000
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["explain.onnx", "model.onnx", "weights.bin"]


@pytest.mark.parametrize(("dropout", "factor"), [("paper", 0.5), ("inverted", 1.0)])
@pytest.mark.parametrize("input_scale", [1 / 64, 0.01])
def test_exported_weights_equal_the_trained_ones_bit_for_bit(
    tmp_path: Path, dropout: Dropout, factor: float, input_scale: float
) -> None:
    net = small_net(small_architecture(dropout, input_scale))
    write_served_graph(net, MEAN, tmp_path)
    model = onnx.load_model(tmp_path / "model.onnx")
    exported = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not t.name.endswith(".shape")}
    exact = {"conv1.weight": 1 / 64 if input_scale == 1 / 64 else 1, "fc7.weight": factor, "fc8.weight": factor}
    for name, value in net.state_dict().items():
        assert np.array_equal(exported.pop(name), value.numpy() * np.float32(exact.get(name, 1))), name
    if input_scale == 0.01:  # not a power of two, so it must not be folded into the weights
        assert exported.pop("input_scale") == np.float32(0.01)
    assert np.array_equal(exported.pop("mean"), MEAN[16:240, 16:240].transpose(2, 0, 1)[None])
    assert set(exported) == {"norm1.band", "norm1.k", "norm2.alpha", "norm2.k"}


def test_the_full_paper_net_matches_torch_with_its_own_normalization(tmp_path: Path) -> None:
    net = AlexNet(Architecture(1000))
    initialise(net, "he", torch.Generator().manual_seed(5))
    with torch.no_grad():
        net.get_parameter("conv1.weight").mul_(1 / 64)
        net.fc8.weight.mul_(20)
    write_served_graph(net.eval(), MEAN, tmp_path)
    weights = (tmp_path / "weights.bin").stat().st_size
    assert 4 * 60_965_224 < weights < 4 * 61_250_000  # plus the mean image and the bands
    for name in ("norm1", "norm2"):
        setattr(net, name, nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
    pixels = random_pixels(3)
    expected_probabilities, expected_fc7 = torch_outputs(net, pixels)
    assert expected_probabilities.max() > 0.005
    probabilities, fc7 = graph_outputs(tmp_path, pixels)
    assert np.abs(probabilities - expected_probabilities).max() <= 1e-5
    np.testing.assert_allclose(fc7, expected_fc7, atol=1e-5 * expected_fc7.max())


def test_a_mean_image_of_another_shape_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="256"):
        write_served_graph(small_net(small_architecture()), MEAN[:224, :224], tmp_path)
