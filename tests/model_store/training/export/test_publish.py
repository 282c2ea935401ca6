"""A trained run becomes a version that answers as torch does, or nothing at all is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from model_store.artifact import Artifact, FileEntry
from model_store.durable import sha256_of
from model_store.errors import CheckpointError, DatasetError, ParityError, ShapeError
from model_store.image import prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.evaluate import TorchPredictor
from model_store.training.export.publish import check_parity, export_run
from model_store.training.export.served_graph import write_served_graph
from model_store.training.nets.alexnet import AlexNet, Architecture, Dropout, Hidden, initialise
from model_store.training.runs.run import load_run
from tests.support.run_folder import CLASSES, SMALL_LAYERS, small_architecture, small_net, write_pictures, write_run

# None of what a plain export makes of the normalisation: Pow, Pad, pooling of three dimensions.
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


def answers_of_graph(folder: Path, pixels: Array, graph: str = "model.onnx") -> tuple[Array, Array]:
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
    probabilities, fc7 = session.run(["probabilities", "fc7"], {"pixels": pixels})
    return probabilities, fc7


def answers_of_torch(net: AlexNet, pixels: Array) -> tuple[Array, Array]:
    centred = (pixels.astype(np.float32) - MEAN[16:240, 16:240]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits, fc7 = net.forward_both(torch.from_numpy(np.ascontiguousarray(centred)))
    return logits.softmax(1).numpy(), fc7.numpy()


@pytest.mark.parametrize("dropout", ["paper", "inverted"])
@pytest.mark.parametrize("input_scale", [1.0, 1 / 64, 0.01])
def test_the_graph_answers_as_the_trained_net_does(tmp_path: Path, dropout: Dropout, input_scale: float) -> None:
    net = small_net(small_architecture(dropout, input_scale))
    write_served_graph(net, MEAN, tmp_path)
    for count, graph in ((1, "model.onnx"), (2, "batches.onnx"), (5, "model.onnx"), (5, "batches.onnx")):
        pixels = random_pixels(count)
        probabilities, fc7 = answers_of_graph(tmp_path, pixels, graph)
        wanted_probabilities, wanted_fc7 = answers_of_torch(net, pixels)
        assert probabilities.dtype == fc7.dtype == np.float32
        assert wanted_probabilities.max() > 0.4  # not uniform, so a difference would show
        np.testing.assert_allclose(probabilities, wanted_probabilities, atol=2e-6)
        np.testing.assert_allclose(fc7, wanted_fc7, atol=2e-5 * wanted_fc7.max())


def test_the_graph_has_the_served_contract_and_only_fast_operators(tmp_path: Path) -> None:
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
    assert files == ["batches.bin", "batches.onnx", "model.onnx", "weights.bin"]


@pytest.mark.parametrize(("dropout", "factor"), [("paper", 0.5), ("inverted", 1.0)])
@pytest.mark.parametrize("input_scale", [1 / 64, 0.01])
def test_exported_weights_are_the_trained_ones_bit_for_bit(
    tmp_path: Path, dropout: Dropout, factor: float, input_scale: float
) -> None:
    net = small_net(small_architecture(dropout, input_scale))
    write_served_graph(net, MEAN, tmp_path)
    model = onnx.load_model(tmp_path / "model.onnx")
    exported = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not t.name.endswith(".shape")}
    exact = {"conv1.weight": 1 / 64 if input_scale == 1 / 64 else 1, "fc7.weight": factor, "fc8.weight": factor}
    for name, value in net.state_dict().items():
        assert np.array_equal(exported.pop(name), value.numpy() * np.float32(exact.get(name, 1))), name
    if input_scale == 0.01:  # no power of two: multiplying weights by it would round them
        assert exported.pop("input_scale") == np.float32(0.01)
    assert np.array_equal(exported.pop("mean"), MEAN[16:240, 16:240].transpose(2, 0, 1)[None])
    assert set(exported) == {"norm1.band", "norm1.k", "norm2.alpha", "norm2.k"}


def test_the_paper_net_at_full_size_answers_as_torch_with_its_own_normalisation(tmp_path: Path) -> None:
    net = AlexNet(Architecture(1000))
    initialise(net, "he", torch.Generator().manual_seed(5))
    with torch.no_grad():
        net.get_parameter("conv1.weight").mul_(1 / 64)
        net.fc8.weight.mul_(20)
    write_served_graph(net.eval(), MEAN, tmp_path)
    weights = (tmp_path / "weights.bin").stat().st_size
    assert 4 * 60_965_224 < weights < 4 * 61_250_000  # and mean image, bands
    for name in ("norm1", "norm2"):
        setattr(net, name, nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
    pixels = random_pixels(3)
    wanted_probabilities, wanted_fc7 = answers_of_torch(net, pixels)
    assert wanted_probabilities.max() > 0.005
    for graph in ("model.onnx", "batches.onnx"):
        probabilities, fc7 = answers_of_graph(tmp_path, pixels, graph)
        assert np.abs(probabilities - wanted_probabilities).max() <= 1e-5
        np.testing.assert_allclose(fc7, wanted_fc7, atol=1e-5 * wanted_fc7.max())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "data")
    return tmp_path / "data"


def what_is_left(home: Path) -> list[str]:
    models = home / "models"
    return sorted(path.name for path in models.iterdir() if path.is_dir()) if models.exists() else []


def test_an_exported_run_is_a_version_with_its_history_and_its_errors(tmp_path: Path, data: Path) -> None:
    home = tmp_path / "home"
    run = load_run(write_run(home, data))
    (data / "val" / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff cut")
    exported = export_run(run, ModelStore(home), name="solar", view_counts=(10, 1))

    artifact = Artifact.open(home / "models" / "solar" / "1")
    manifest = artifact.manifest
    assert artifact.id == exported.artifact.id == "solar:1"
    assert artifact.labels == CLASSES
    assert (manifest.architecture, manifest.opset, manifest.producer) == ("alexnet", 17, "fc7 0.1.0")
    assert manifest.parent_run == run.path.name
    assert manifest.recipe["name"] == "trial"

    # The errors again, from the files, in torch and numpy.
    pictures = [(path, CLASSES.index(path.parent.name)) for path in sorted(data.glob("val/*/*.png"))]
    rows = np.concatenate([views(prepare(path.read_bytes())) for path, _ in pictures])
    answers = TorchPredictor("torch", run.classes, run.network, run.mean).probabilities(rows)
    wrong = np.mean(answers.argmax(axis=1) != [label for _, label in pictures])
    assert manifest.metrics["top1_error"] == pytest.approx(wrong)
    assert manifest.metrics["top5_error"] == 0  # three classes
    assert (manifest.metrics["views"], set(manifest.metrics["by_views"])) == (1, {"1", "10"})
    assert (manifest.metrics["images"], manifest.metrics["images_skipped"]) == (12, 1)
    assert manifest.metrics["parity"]["images"] == exported.parity.images > 8
    assert manifest.metrics["parity"]["probabilities"] <= 1e-5
    assert len(manifest.metrics["data_sha256"]) == 64
    assert manifest.metrics["training_data_sha256"] == "0" * 64

    report = artifact.path / "report"
    assert sorted(path.name for path in report.iterdir()) == [
        *("confusion.csv", "confusion.png", "conv1.png", "curves.png", "metrics.json"),
    ]
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["top1_error"] == manifest.metrics["top1_error"]
    assert metrics["skipped"][0]["file"].endswith("val/red/cut.jpg")
    assert np.sum(metrics["confusion"]) == 12
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    np.testing.assert_allclose(runner.run(rows).probabilities, answers, atol=1e-5)


def test_weights_that_are_not_numbers_publish_nothing_and_leave_nothing(tmp_path: Path, data: Path) -> None:
    home = tmp_path / "home"
    run = load_run(write_run(home, data))
    with torch.no_grad():
        run.network.fc8.bias[0] = float("nan")
    with pytest.raises(ParityError, match=r"nan in probabilities.*Nothing was published"):
        export_run(run, ModelStore(home))
    assert what_is_left(home) == []


def test_parity_fails_for_another_net_and_for_another_fc7_with_the_same_probabilities(
    tmp_path: Path, data: Path
) -> None:
    home = tmp_path / "home"
    run = load_run(write_run(home, data))
    artifact = export_run(run, ModelStore(home)).artifact
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    photographs = np.stack([prepare(path.read_bytes()) for path in sorted(data.glob("val/*/*.png"))])
    same = TorchPredictor("same", run.classes, run.network, run.mean)
    parity = check_parity(runner, same, photographs)
    assert (parity.images, parity.probabilities < 1e-5, parity.fc7 < 1e-4) == (12, True, True)

    kernels = artifact.path / "batches.bin"
    kernels.write_bytes(kernels.read_bytes()[:-4] + np.float32(50).tobytes())
    files = dict(artifact.manifest.files) | {
        "batches.bin": FileEntry(sha256=sha256_of(kernels), size=kernels.stat().st_size)
    }
    changed = Artifact(artifact.path, artifact.manifest.model_copy(update={"files": files}), verified=True)
    check_parity(Runner(changed, RunnerOptions(device="cpu")), same, photographs)
    with pytest.raises(ParityError):
        check_parity(Runner(changed, RunnerOptions(device="cpu", streams=2)), same, photographs)

    with torch.no_grad():
        run.network.get_parameter("fc7.weight").mul_(2)
        run.network.get_parameter("fc7.bias").mul_(2)
        run.network.fc8.weight.mul_(0.5)
    with pytest.raises(ParityError, match="fc7"):
        check_parity(runner, same, photographs)

    other = small_net(small_architecture(), seed=1)
    with pytest.raises(ParityError, match="in probabilities") as failure:
        check_parity(runner, TorchPredictor("other", run.classes, other, run.mean), photographs)
    assert failure.value.difference > 0.01
    with pytest.raises(ParityError):  # the mean image is part of the graph
        check_parity(runner, TorchPredictor("mean", run.classes, run.network, run.mean + 5), photographs)


def test_a_folder_of_broken_images_publishes_nothing(tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    (data / "val" / "red").mkdir(parents=True)
    (data / "val" / "red" / "note.jpg").write_text("no picture")
    run = load_run(write_run(home, data))
    with pytest.raises(DatasetError, match=r"none can be read.*note\.jpg"):
        export_run(run, ModelStore(home))
    assert what_is_left(home) == []


def test_a_net_whose_fc7_is_not_the_served_size_is_refused(tmp_path: Path, data: Path) -> None:
    layers = (*SMALL_LAYERS[:-1], Hidden("fc7", 64))
    run = load_run(write_run(tmp_path / "home", data, Architecture(3, layers)))
    with pytest.raises(CheckpointError, match=r"64 neurons in fc7.*4096"):
        export_run(run, ModelStore(tmp_path / "home"))
    assert what_is_left(tmp_path / "home") == []


def test_a_mean_image_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="256"):
        write_served_graph(small_net(small_architecture()), MEAN[:224, :224], tmp_path)
