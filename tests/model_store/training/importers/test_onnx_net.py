"""ONNX files: the version outputs what the zoo's own graph and exported modules output."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper
from torch import nn

from model_store.errors import Fc7Error
from model_store.training.errors import ImportFormatError
from model_store.training.importers.imported_net import ALEXNET_LAYERS, ImportedNet
from model_store.training.importers.onnx_net import read_onnx
from model_store.training.nets.alexnet import Pool
from tests.model_store.training.importers.helpers import (
    IMAGENET_COLOR,
    TorchvisionAlexNet,
    assert_outputs_match,
    error_message,
    import_by_command,
    publish,
    published_outputs,
    served_outputs,
)
from tests.support.training import weight_files as files

CLASSES = 6


@pytest.fixture(scope="module")
def weights() -> files.Weights:
    drawn = files.random_weights(files.SMALL_ALEXNET, CLASSES)
    return files.with_spread_logits(drawn, lambda rgb: files.caffe_outputs(drawn, IMAGENET_COLOR, rgb, size=224))


@pytest.fixture
def zoo(tmp_path: Path, weights: files.Weights) -> Path:
    return files.write_zoo_model(tmp_path / "bvlcalexnet-12.onnx", weights)


def read(path: Path, mean: str | None = None) -> ImportedNet:
    return read_onnx(path, mean=mean, layers=files.SMALL_ALEXNET)


def zoo_outputs(path: Path, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the zoo's own graph on BGR minus the mean color, one image at a time, as it requires."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bgr = rgb[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - IMAGENET_COLOR
    return np.concatenate([session.run(None, {"data_0": bgr[index : index + 1]})[0] for index in range(len(rgb))])


@pytest.mark.parametrize(
    ("opset", "ceil_mode", "pool_before_norm"),
    [(12, False, False), (8, False, False), (12, True, False), (12, False, True)],
    ids=["zoo", "older opset", "ceil_mode", "caffenet"],
)
def test_outputs_match_the_zoos_own_graph(
    tmp_path: Path, weights: files.Weights, opset: int, ceil_mode: bool, pool_before_norm: bool
) -> None:
    path = tmp_path / "net.onnx"
    files.write_zoo_model(path, weights, opset=opset, ceil_mode=ceil_mode, pool_before_norm=pool_before_norm)
    net = read(path)
    assert net.architecture.name == ("caffenet" if pool_before_norm else "bvlc_alexnet")
    assert [size.size for size in net.architecture.maps() if size.name in ("conv1", "pool1", "pool5")] == [54, 27, 6]
    rgb = files.random_images(4)
    probabilities, fc7 = published_outputs(net, tmp_path, rgb)
    np.testing.assert_allclose(probabilities, zoo_outputs(path, rgb), atol=1e-5)
    expected = files.caffe_outputs(weights, IMAGENET_COLOR, rgb, size=224, pool_before_norm=pool_before_norm)
    assert expected[0].std() > 0.01
    np.testing.assert_allclose(probabilities, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(fc7, expected[1].numpy(), atol=1e-5 * float(expected[1].max()))


def test_the_last_pooling_window_extends_over_the_edge(tmp_path: Path, zoo: Path, weights: files.Weights) -> None:
    # At 227 pixels, the maps would differ on the right and at the bottom.
    rgb = files.random_images(2)
    probabilities, _ = published_outputs(read(zoo), tmp_path, rgb)
    padded = files.caffe_outputs(weights, IMAGENET_COLOR, rgb, size=227)[0].numpy()
    assert np.abs(probabilities - padded).max() > 1e-4
    assert [layer.edge for layer in read(zoo).architecture.layers if isinstance(layer, Pool)] == [1, 1, 1]


def test_a_graph_for_227_pixels_gets_an_edge_of_the_mean_color(tmp_path: Path, weights: files.Weights) -> None:
    net = read(files.write_zoo_model(tmp_path / "net.onnx", weights, size=227, ceil_mode=True))
    rgb = files.random_images(3)
    probabilities, _ = published_outputs(net, tmp_path, rgb)
    np.testing.assert_allclose(probabilities, files.caffe_outputs(weights, IMAGENET_COLOR, rgb)[0].numpy(), atol=1e-5)
    assert "3 columns and rows of the mean color" in net.preprocessing


def test_a_graph_without_softmax_is_read_with_a_given_mean(tmp_path: Path, weights: files.Weights) -> None:
    net = read(files.write_zoo_model(tmp_path / "net.onnx", weights, softmax=False), "90,110,130")
    rgb = files.random_images(3)
    mean = np.array([90, 110, 130], np.float32)[:, None, None]
    probabilities, _ = published_outputs(net, tmp_path, rgb)
    np.testing.assert_allclose(probabilities, files.caffe_outputs(weights, mean, rgb, size=224)[0].numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_command_imports_the_full_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = files.random_weights(ALEXNET_LAYERS, 1000)
    files.with_spread_logits(drawn, lambda rgb: files.caffe_outputs(drawn, IMAGENET_COLOR, rgb, size=224))
    path = files.write_zoo_model(tmp_path / "bvlcalexnet-12.onnx", drawn)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"n{index:08} thing {index}\n" for index in range(1000)))
    artifact = import_by_command(tmp_path, "onnx", path, "--labels", str(labels), "--name", "zoo")
    assert "zoo:1" in capsys.readouterr().out
    assert artifact.labels[:2] == ("thing 0", "thing 1")
    rgb = files.random_images(2)
    np.testing.assert_allclose(served_outputs(artifact, rgb)[0], zoo_outputs(path, rgb), atol=1e-5)


def changed(path: Path, change: str) -> Path:  # noqa: PLR0912 - one branch per change
    """Apply one change to a graph file."""
    model = onnx.load_model(path)
    graph = model.graph
    first = graph.node[0]
    match change:
        case "stride":
            next(entry for entry in first.attribute if entry.name == "strides").ints[:] = [2, 2]
        case "groups":
            next(entry for entry in graph.node[4].attribute if entry.name == "group").i = 1
        case "pads":
            next(entry for entry in first.attribute if entry.name == "pads").ints[:] = [0, 1, 1, 0]
        case "auto_pad":
            first.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
        case "beta":
            next(entry for entry in graph.node[2].attribute if entry.name == "beta").f = 0.5
        case "branch":
            graph.node[3].input[0] = graph.node[0].output[0]
        case "two inputs":
            graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
        case "input size":
            graph.input[0].type.tensor_type.shape.dim[2].dim_value = 299
        case "quantized":
            first.op_type = "QLinearConv"
        case "no weights":
            del graph.initializer[0]
        case "alpha":
            next(node for node in graph.node if node.op_type == "Gemm").attribute.append(
                helper.make_attribute("alpha", 2.0)
            )
        case "broken weights":
            graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-8]
        case "integer weights":
            entry = next(tensor for tensor in graph.initializer if tensor.name == "fc8_b_0")
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros(CLASSES, np.int64), "fc8_b_0"))
        case "shape":
            entry = next(tensor for tensor in graph.initializer if tensor.name == "fc6_w_0")
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros((24, 200), np.float32), "fc6_w_0"))
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("stride", r"has stride \[2, 2\] instead of \[4, 4\], so it is another net"),
        ("groups", "groups 1 instead of 2"),
        ("pads", r"pads \[0, 1, 1, 0\]"),
        ("auto_pad", "auto_pad SAME_UPPER"),
        ("beta", "size 5, beta 0.5"),
        ("branch", "neither the zoo's AlexNet or CaffeNet"),
        ("two inputs", r"it has 2 inputs \(data_0, other\)"),
        ("input size", "has the shape 1x3x299x224 instead of Nx3x224x224"),
        ("quantized", "Use the one without -int8"),
        ("no weights", "has no weights 'conv1_w_0'"),
        ("alpha", "is not a plain fully-connected layer"),
        ("broken weights", "the weights conv1_w_0 are damaged"),
        ("integer weights", "the bias of layer .* is torch.int64 instead of floating point"),
        ("shape", r"the weight of layer .* \(fc6\) has the shape 24x200, but bvlc_alexnet has 24x216"),
    ],
)
def test_a_graph_of_another_net_is_rejected_with_the_reason(zoo: Path, change: str, expected: str) -> None:
    with pytest.raises(ImportFormatError, match=expected):
        read(changed(zoo, change))


def in_another_file(model: Path, location: str) -> onnx.ModelProto:
    """Return the model with its weights in the file `location`."""
    content = onnx.load_model(model)
    external_data_helper.convert_model_to_external_data(content, location=location, size_threshold=0)
    return content


def test_external_weights_are_read_from_the_file_beside_the_model(tmp_path: Path, zoo: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save_model(in_another_file(zoo, "external.onnx.data"), path)
    net, expected = read(path), read(zoo)
    for key, value in net.weights.items():
        torch.testing.assert_close(value, expected.weights[key])
    imported = publish(net, tmp_path).artifact.manifest.recipe["imported"]
    data = tmp_path / "external.onnx.data"
    assert [(part["file"], part["size"]) for part in imported["parts"]] == [(data.name, data.stat().st_size)]
    data.write_bytes(data.read_bytes()[:-100])
    assert "external.onnx.data" in error_message(read, path)
    data.unlink()
    assert f"the file external.onnx.data, which is missing in {tmp_path}" in error_message(read, path)


def test_external_weights_outside_of_the_folder_are_not_read(tmp_path: Path, zoo: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    onnx.save_model(in_another_file(zoo, "data.bin"), folder / "net.onnx")
    (folder / "data.bin").rename(tmp_path / "data.bin")
    model = onnx.load_model(folder / "net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../data.bin"
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    assert "../data.bin cannot be read" in error_message(read, folder / "net.onnx")
    (folder / "data.bin").symlink_to(tmp_path / "data.bin")
    onnx.save_model(in_another_file(zoo, "other.bin"), folder / "other.onnx")
    (folder / "other.bin").rename(tmp_path / "other.bin")
    (folder / "other.bin").symlink_to(tmp_path / "other.bin")
    assert "other.bin cannot be read" in error_message(read, folder / "other.onnx")


class Normalized(nn.Module):
    """torchvision's net with its normalization inside, for pixels 0-1."""

    def __init__(self, net: nn.Module, *, mean: float = 0.485) -> None:
        super().__init__()
        self.net = TorchvisionAlexNet(net)
        self.register_buffer("mean", torch.tensor([mean, 0.456, 0.406])[:, None, None])
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return probabilities."""
        assert isinstance(self.mean, torch.Tensor)
        assert isinstance(self.deviation, torch.Tensor)
        return torch.softmax(self.net((x - self.mean) / self.deviation), 1)


def export(module: nn.Module, path: Path, *, dynamo: bool, **options: Any) -> Path:
    example = (torch.zeros(1, 3, 224, 224),)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(module, example, path, dynamo=dynamo, verbose=False, **options)
    return path


def read_export(path: Path) -> ImportedNet:
    return read_onnx(path, owt=files.SMALL_OWT)


@pytest.mark.parametrize("form", ["dynamo", "torchscript", "not folded", "normalized", "matmul"])
def test_an_export_of_torchvisions_net_gives_its_outputs(tmp_path: Path, form: str) -> None:
    torch.manual_seed(13)
    net = files.torchvision_alexnet(CLASSES, (8, 12, 8, 8, 6), 24)
    last = net.get_submodule("classifier.6")
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, 0, 0.5)
    module, path = TorchvisionAlexNet(net), tmp_path / "export.onnx"
    match form:
        case "dynamo":
            export(module, path, dynamo=True, external_data=True)
            assert (tmp_path / "export.onnx.data").exists()
        case "torchscript":
            export(module, path, dynamo=False, opset_version=13, dynamic_axes={"x": {0: "n"}}, input_names=["x"])
        case "not folded":
            options = {"do_constant_folding": False, "keep_initializers_as_inputs": True, "opset_version": 9}
            export(module, path, dynamo=False, **options)
        case "normalized":
            export(Normalized(net), path, dynamo=False, opset_version=17)
        case "matmul":
            export(module, path, dynamo=False, opset_version=13)
            as_matmul(path)
    rgb = files.random_images(3)
    net_read = read_export(path)
    assert net_read.architecture.name == "owt"
    assert_outputs_match(published_outputs(net_read, tmp_path, rgb), files.torchvision_outputs(net, rgb))
    assert "--mean is for nets of Caffe" in error_message(
        lambda file: read_onnx(file, mean="1,2,3", owt=files.SMALL_OWT), path
    )


def as_matmul(path: Path) -> None:
    """Replace each Gemm by a MatMul with transposed weights and an Add, as other exporters write it."""
    model = onnx.load_model(path)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        x, weight, bias = node.input
        product, turned = f"{node.output[0]}_product", f"{weight}_turned"
        nodes.append(helper.make_node("Transpose", [weight], [turned], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", [x, turned], [product]))
        nodes.append(helper.make_node("Add", [bias, product], list(node.output)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save_model(model, path)


def test_an_export_with_another_normalization_is_rejected(tmp_path: Path) -> None:
    net = files.torchvision_alexnet(CLASSES, (8, 12, 8, 8, 6), 24)
    path = export(Normalized(net, mean=0.5), tmp_path / "net.onnx", dynamo=False, opset_version=17)
    assert "not as torchvision's transforms do" in error_message(read_export, path)


def test_a_truncated_file_is_rejected_wherever_it_ends(tmp_path: Path, zoo: Path) -> None:
    data, path = zoo.read_bytes(), tmp_path / "truncated.onnx"
    for end in (1, 3, 30, 300, 3000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(Fc7Error):
            read(path)


def test_files_of_another_kind_are_directed_to_their_command(tmp_path: Path, weights: files.Weights) -> None:
    caffe = files.write_caffemodel(tmp_path / "net.onnx", weights)
    assert f"it is a Caffe model, not an ONNX model. To import it, run: fc7 import caffe {caffe}" in error_message(
        read, caffe
    )
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.onnx")
    assert "To import it, run: fc7 import torchvision" in error_message(read, tmp_path / "other.onnx")
