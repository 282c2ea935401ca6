"""The ONNX zoo's file: the version answers as the zoo's own graph does in ONNX Runtime, and as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper

from model_store.errors import Fc7Error, ImportFormatError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.importers.imported_net import ALEXNET_LAYERS, IMAGENET_MEAN_BGR, ImportedNet
from model_store.training.importers.labels import labels_for
from model_store.training.importers.onnx_zoo import read_onnx
from model_store.training.importers.publish import publish_import
from model_store.training.nets.alexnet import Pool
from service.cli.main import app
from tests.support import weight_files as files

CLASSES = 6
COLOUR = np.array(IMAGENET_MEAN_BGR, np.float32)[:, None, None]


@pytest.fixture(scope="module")
def weights() -> files.Weights:
    drawn = files.draw_weights(files.SMALL_ALEXNET, CLASSES)
    return files.spread(drawn, lambda rgb: files.caffe_answers(drawn, COLOUR, rgb, size=224))


@pytest.fixture
def zoo(tmp_path: Path, weights: files.Weights) -> Path:
    return files.write_zoo_model(tmp_path / "bvlcalexnet-12.onnx", weights)


def read(path: Path, mean: str | None = None) -> ImportedNet:
    return read_onnx(path, mean=mean, layers=files.SMALL_ALEXNET)


def answers(net: ImportedNet, home: Path, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    imported = publish_import(net, ModelStore(home), labels_for(net.architecture.classes))
    runner = Runner(imported.artifact, RunnerOptions(device="cpu"))
    try:
        outputs = runner.run(rgb)
        return outputs.probabilities, outputs.fc7
    finally:
        runner.close()


def zoo_answers(path: Path, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run the zoo's own graph, one picture at a time as it wants, on BGR minus the mean colour."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bgr = rgb[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - COLOUR
    return np.concatenate([session.run(None, {"data_0": bgr[index : index + 1]})[0] for index in range(len(rgb))])


@pytest.mark.parametrize(
    ("opset", "ceil_mode", "pool_before_norm"),
    [(12, False, False), (8, False, False), (12, True, False), (12, False, True)],
    ids=["as the zoo's", "older", "rounding up by attribute", "caffenet"],
)
def test_a_version_answers_as_the_zoos_own_graph(
    tmp_path: Path, weights: files.Weights, opset: int, ceil_mode: bool, pool_before_norm: bool
) -> None:
    path = tmp_path / "net.onnx"
    files.write_zoo_model(path, weights, opset=opset, ceil_mode=ceil_mode, pool_before_norm=pool_before_norm)
    net = read(path)
    assert net.architecture.name == ("caffenet" if pool_before_norm else "bvlc_alexnet")
    assert [size.size for size in net.architecture.maps() if size.name in ("conv1", "pool1", "pool5")] == [54, 27, 6]
    rgb = files.pictures(4)
    found, fc7 = answers(net, tmp_path, rgb)
    np.testing.assert_allclose(found, zoo_answers(path, rgb), atol=1e-5)
    wanted = files.caffe_answers(weights, COLOUR, rgb, size=224, pool_before_norm=pool_before_norm)
    assert wanted[0].std() > 0.01
    np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(fc7, wanted[1].numpy(), atol=1e-5 * float(wanted[1].max()))


def test_the_last_window_of_a_pool_hangs_over_the_edge(tmp_path: Path, zoo: Path, weights: files.Weights) -> None:
    # What 227 pixels would give: other maps at the right and at the bottom.
    rgb = files.pictures(2)
    found, _ = answers(read(zoo), tmp_path, rgb)
    padded = files.caffe_answers(weights, COLOUR, rgb, size=227)[0].numpy()
    assert np.abs(found - padded).max() > 1e-4
    assert [layer.edge for layer in read(zoo).architecture.layers if isinstance(layer, Pool)] == [1, 1, 1]


def test_a_graph_for_227_gets_an_edge_of_the_mean_colour(tmp_path: Path, weights: files.Weights) -> None:
    net = read(files.write_zoo_model(tmp_path / "net.onnx", weights, size=227, ceil_mode=True))
    rgb = files.pictures(3)
    found, _ = answers(net, tmp_path, rgb)
    np.testing.assert_allclose(found, files.caffe_answers(weights, COLOUR, rgb)[0].numpy(), atol=1e-5)
    assert "3 columns and rows of the mean colour" in net.preprocessing


def test_a_graph_without_softmax_and_a_mean_of_its_own(tmp_path: Path, weights: files.Weights) -> None:
    net = read(files.write_zoo_model(tmp_path / "net.onnx", weights, softmax=False), "90,110,130")
    rgb = files.pictures(3)
    mean = np.array([90, 110, 130], np.float32)[:, None, None]
    found, _ = answers(net, tmp_path, rgb)
    np.testing.assert_allclose(found, files.caffe_answers(weights, mean, rgb, size=224)[0].numpy(), atol=1e-5)


def test_the_whole_net_is_imported_by_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = files.draw_weights(ALEXNET_LAYERS, 1000)
    files.spread(drawn, lambda rgb: files.caffe_answers(drawn, COLOUR, rgb, size=224))
    path = files.write_zoo_model(tmp_path / "bvlcalexnet-12.onnx", drawn)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"n{index:08} thing {index}\n" for index in range(1000)))
    app(
        ["import", "onnx", str(path), "--labels", str(labels), "--name", "zoo", "--home", str(tmp_path)],
        standalone_mode=False,
    )
    assert "zoo:1" in capsys.readouterr().out
    artifact = ModelStore(tmp_path).active_artifact(verify=False)
    assert artifact.labels[:2] == ("thing 0", "thing 1")
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    rgb = files.pictures(2)
    outputs = runner.run(rgb)
    runner.close()
    np.testing.assert_allclose(outputs.probabilities, zoo_answers(path, rgb), atol=1e-5)


# ---- bad files ----


def refusal(path: Path) -> str:
    with pytest.raises(ImportFormatError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(path: Path, change: str) -> Path:  # noqa: PLR0912 - one branch a change
    """Change a written graph in one way."""
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
        case "quantised":
            first.op_type = "QLinearConv"
        case "no weights":
            del graph.initializer[0]
        case "alpha":
            next(node for node in graph.node if node.op_type == "Gemm").attribute.append(
                helper.make_attribute("alpha", 2.0)
            )
        case "broken weights":
            graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-8]
        case "whole numbers":
            entry = next(tensor for tensor in graph.initializer if tensor.name == "fc8_b_0")
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros(CLASSES, np.int64), "fc8_b_0"))
        case "shape":
            entry = next(tensor for tensor in graph.initializer if tensor.name == "fc6_w_0")
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros((24, 200), np.float32), "fc6_w_0"))
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stride", r"stride \[2, 2\], not \[4, 4\]: it is another net"),
        ("groups", "groups 1, not 2"),
        ("pads", r"pads \[0, 1, 1, 0\]"),
        ("auto_pad", "auto_pad SAME_UPPER"),
        ("beta", "size 5, beta 0.5"),
        ("branch", "MaxPool does not follow the one before"),
        ("two inputs", r"it takes 2 inputs \(data_0, other\)"),
        ("input size", "has the shape 1x3x299x224, not Nx3x224x224"),
        ("quantised", "take the one without -int8"),
        ("no weights", "has no weights 'conv1_w_0'"),
        ("alpha", "is no plain fully-connected layer"),
        ("broken weights", "the weights of Conv are broken"),
        ("whole numbers", "the bias of layer .* is torch.int64, not floating point"),
        ("shape", r"the weight of layer .* \(our fc6\) has the shape 24x200, and bvlc_alexnet has 24x216"),
    ],
)
def test_another_graph_is_refused_with_its_reason(zoo: Path, change: str, said: str) -> None:
    with pytest.raises(ImportFormatError, match=said):
        read(changed(zoo, change))


def test_weights_outside_the_file_are_not_read(tmp_path: Path, zoo: Path) -> None:
    model = onnx.load_model(zoo)
    external_data_helper.convert_model_to_external_data(model, location="../secret.bin", size_threshold=0)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    path = tmp_path / "elsewhere.onnx"
    path.write_bytes(model.SerializeToString())
    assert "is in another file, which is not read" in refusal(path)


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path, zoo: Path) -> None:
    data, cut = zoo.read_bytes(), tmp_path / "cut.onnx"
    for place in (1, 3, 30, 300, 3000, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:place])
        with pytest.raises(Fc7Error):
            read(cut)


def test_other_files_are_sent_to_their_command(tmp_path: Path, weights: files.Weights) -> None:
    caffe = files.write_caffemodel(tmp_path / "net.onnx", weights)
    assert f"it is a Caffe model, not an ONNX model. For that: fc7 import caffe {caffe}" in refusal(caffe)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.onnx")
    assert "For that: fc7 import torchvision" in refusal(tmp_path / "other.onnx")
