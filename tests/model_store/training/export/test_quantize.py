"""Versions with additional int8 and fp16 graphs are compared with fp32, and published only if they agree."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from model_store.artifact import Artifact
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, PrecisionNotFoundError
from model_store.image import prepare, views
from model_store.manifest import ManifestDraft, class_labels
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner, engine_of
from model_store.store import ModelStore
from model_store.training.errors import AgreementError
from model_store.training.export.graph import OPSET
from model_store.training.export.quantize import add_precisions
from model_store.training.export.served_graph import write_served_graph
from model_store.training.parents import version_data
from service.cli.main import app
from tests.support.training.run_folder import CLASSES, small_architecture, small_net, write_pictures, write_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")

MEAN_BYTES = 224 * 224 * 3 * 4  # float32 in every precision


def publish(home: Path, input_scale: float = 1 / 64) -> Artifact:
    store = ModelStore(home)
    with store.staging("small") as staged:
        mean = np.full((256, 256, 3), 120, np.float32)
        write_served_graph(small_net(small_architecture(input_scale=input_scale)), mean, staged)
        draft = ManifestDraft(
            name="small", architecture="small", classes=class_labels(CLASSES), opset=OPSET, producer="test"
        )
        return store.publish(staged, draft)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        write_pictures(root, split)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("precisions") / "home"
    add_precisions(publish(folder), ModelStore(folder), ["int8", "fp16"], data)
    return folder


def val_images(data: Path) -> np.ndarray:
    return np.concatenate([views(prepare(path.read_bytes())) for path in sorted((data / "val").rglob("*.png"))])


def run(artifact: Artifact, pixels: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    runner = Runner(artifact, RunnerOptions(device="cpu", precision=precision))
    try:
        assert runner.artifact.precision == precision
        return runner.run(pixels)
    finally:
        runner.close()


def test_without_data_the_split_of_the_run_is_used(tmp_path: Path, data: Path) -> None:
    photos, home = tmp_path / "photos", tmp_path / "home"
    shutil.copytree(data / "train", photos)
    run_path, cli, options = write_run(home, photos), CliRunner(), ["--home", str(home)]
    rows = [f"{path},{path.parent.name},{'val' if path.stem == '0' else 'train'}\n" for path in photos.rglob("*.png")]
    split = run_path / "split.csv"
    split.write_text("path,label,split\n" + "".join(sorted(rows)))
    assert cli.invoke(app, ["export", "small", "--force", *options]).exit_code == 0
    quantize = ["models", "quantize", "small", "--precision", "int8", *options]
    done = cli.invoke(app, quantize)
    assert done.exit_code == 0, done.output
    version = ModelStore(home).resolve("small")
    found = version.manifest.precisions["int8"].metrics
    assert (found["data"], found["calibration_images"]) == (str(split), 9)
    assert version_data(home, version, photos) == split, "the folder of the run has no split of its own"
    assert version_data(home, version, data) == data
    assert json.loads(cli.invoke(app, ["evaluate", "small:1", "--json", *options]).stdout)["images_seen"] == 3
    shutil.rmtree(home / "runs")
    assert "Give a data set with --data" in str(cli.invoke(app, quantize).exception)
    # A data set without a split is divided as in training.
    done = cli.invoke(app, [*quantize, "--data", str(photos)])
    assert done.exit_code == 0, done.output
    found = ModelStore(home).resolve("small").manifest.precisions["int8"].metrics
    assert (found["data"], found["images"], found["calibration_images"]) == (str(photos), 3, 9)
    refused = cli.invoke(app, [*quantize, "--data", str(photos), "--split", "test"])
    assert "has no split 'test'" in str(refused.exception)


def test_the_new_version_has_the_same_fp32_files_and_names_its_parent(home: Path) -> None:
    old, new = (ModelStore(home).get("small", version) for version in (1, 2))
    for name, entry in old.manifest.files.items():
        assert new.manifest.files[name] == entry
    assert (old.precisions, new.precisions) == (("fp32",), ("fp32", "int8", "fp16"))
    assert new.manifest.parent_version == "small:1"
    assert new.fingerprint == old.fingerprint
    fingerprints = {new.at(precision).fingerprint for precision in new.precisions}
    assert len(fingerprints) == 3
    assert new.at("int8").embedder == "small:2 (int8)"
    assert new.at("fp32").embedder == "small:2"


def test_only_the_vectors_of_int8_depend_on_the_engine(home: Path) -> None:
    artifact = ModelStore(home).get("small", 2)
    for precision in ("fp32", "fp16"):
        assert artifact.at(precision, "openvino").fingerprint == artifact.at(precision, "onnxruntime").fingerprint
    onnxruntime, openvino = (artifact.at("int8", engine) for engine in ("onnxruntime", "openvino"))
    in_manifest = artifact.manifest.precisions["int8"].fingerprint
    assert onnxruntime.fingerprint == in_manifest, "indexes of earlier releases stay valid"
    assert openvino.fingerprint == sha256(bytes.fromhex(in_manifest) + b"openvino").hexdigest()
    assert (onnxruntime.embedder, openvino.embedder) == ("small:2 (int8)", "small:2 (int8, OpenVINO)")
    assert artifact.at("fp16", "openvino").embedder == "small:2 (fp16)"
    fingerprints = [variant.fingerprint for variant in artifact.variants()]
    assert len(fingerprints) == len(set(fingerprints)) == 4


def test_a_version_is_found_by_each_of_its_fingerprints(home: Path) -> None:
    store = ModelStore(home, precision="int8", engine="openvino")
    assert store.get("small", 2).embedder == "small:2 (int8, OpenVINO)"
    for variant in store.get("small", 2).variants():
        found = store.find(variant.fingerprint)
        assert found is not None
        assert found.embedder == variant.embedder, "small:1 has the same fp32 files, but none in int8"
    assert store.find("0" * 64) is None


def test_the_engine_of_a_runner_is_the_one_that_was_announced(home: Path) -> None:
    artifact = ModelStore(home).get("small", 2).at("int8")
    assert engine_of(RunnerOptions(device="cuda")) == "onnxruntime"
    for engine in ("auto", "onnxruntime", "openvino"):
        for device in ("auto", "cpu"):
            options = RunnerOptions(device=device, engine=engine)
            with closing(Runner(artifact, options)) as runner:
                assert runner.engine == runner.artifact.engine == engine_of(options)
                assert runner.arithmetic == "int8"


@pytest.mark.parametrize(("precision", "limits"), [("int8", (0.99, 0.2, 0.35)), ("fp16", (0.99999, 0.005, 0.55))])
def test_outputs_are_close_to_fp32_and_the_differences_are_recorded(
    home: Path, data: Path, precision: str, limits: tuple[float, float, float]
) -> None:
    cosine, difference, share = limits
    artifact, pixels = ModelStore(home).get("small", 2), val_images(data)
    expected, actual = run(artifact, pixels, "fp32"), run(artifact, pixels, precision)
    assert 0 < np.abs(expected[0] - actual[0]).max() < difference
    each = (expected[1] * actual[1]).sum(1) / (np.linalg.norm(expected[1], axis=1) * np.linalg.norm(actual[1], axis=1))
    assert each.min() > cosine
    metrics = artifact.manifest.precisions[precision].metrics
    assert metrics["images"] == len(pixels) == 12
    assert metrics["k"] == 2
    assert metrics["fc7_cosine"] == pytest.approx(each.mean(), abs=1e-5)
    assert metrics["fc7_cosine_least"] == pytest.approx(each.min(), abs=1e-5)
    assert metrics["top1_agreement"] == np.mean(expected[0].argmax(1) == actual[0].argmax(1))
    assert metrics["top5_agreement"] == 1
    truth = np.repeat([0, 1, 2], 4)
    error = np.mean(actual[0].argmax(1) != truth)
    assert metrics["top1_error"] == pytest.approx(error)
    assert metrics["top1_error_change"] == pytest.approx(error - np.mean(expected[0].argmax(1) != truth))
    sizes = [each.weights_path.stat().st_size - MEAN_BYTES for each in (artifact.at(precision), artifact)]
    assert sizes[0] < share * sizes[1]


def test_weights_are_quantized_per_channel_and_normalization_stays_in_float32(home: Path) -> None:
    artifact = ModelStore(home).get("small", 2)
    int8 = onnx.load_model(artifact.at("int8").model_path).graph
    tensors = {tensor.name: tensor for tensor in int8.initializer}
    assert tensors["conv2.weight_quantized"].data_type == TensorProto.INT8
    assert len(numpy_helper.to_array(tensors["conv2.weight_scale"])) == 12
    assert {tensors[name].data_type for name in ("norm1.band", "norm2.alpha")} == {TensorProto.FLOAT}
    fp16 = onnx.load_model(artifact.at("fp16").model_path).graph
    types = {tensor.name: tensor.data_type for tensor in fp16.initializer}
    assert types["fc6.weight"] == types["conv1.weight"] == TensorProto.FLOAT16
    assert types["norm1.band"] == types["norm2.k"] == types["mean"] == TensorProto.FLOAT


def test_fp16_handles_values_whose_squares_exceed_its_range(tmp_path: Path, data: Path) -> None:
    # Without the input scale, conv1 outputs reach thousands, whose squares are infinite in fp16.
    artifact = publish(tmp_path, input_scale=1)
    pixels = val_images(data)
    with_fp16 = add_precisions(artifact, ModelStore(tmp_path), ["fp16"], data)
    assert np.isfinite(run(with_fp16, pixels, "fp16")[1]).all()


def test_every_precision_is_verified(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    artifact = ModelStore(tmp_path / "copy").get("small", 2)
    path = artifact.at("int8").weights_path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactCorruptError, match="int8"):
        ModelStore(tmp_path / "copy").get("small", 2)


def test_a_manifest_without_precisions_is_read_and_a_wrong_fingerprint_is_rejected(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    path = tmp_path / "copy" / "models" / "small" / "1" / "manifest.json"
    values = json.loads(path.read_text())
    del values["precisions"], values["parent_version"]
    path.write_text(json.dumps(values))
    old = ModelStore(tmp_path / "copy").get("small", 1)
    assert old.at("fp32").fingerprint == old.fingerprint
    with pytest.raises(
        PrecisionNotFoundError, match=r"small:1 has no int8 files, only fp32.*fc7 models quantize small:1"
    ):
        Runner(old, RunnerOptions(precision="int8"))
    path = tmp_path / "copy" / "models" / "small" / "2" / "manifest.json"
    values = json.loads(path.read_text())
    values["precisions"]["int8"]["fingerprint"] = values["fingerprint"]
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactFormatError, match="fingerprint of int8"):
        ModelStore(tmp_path / "copy").get("small", 2)


def test_a_version_below_the_agreement_limit_is_not_published(tmp_path: Path, data: Path) -> None:
    for name in CLASSES:
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (256, 256), (120, 120, 120)).save(tmp_path / "data" / "train" / name / "gray.png")
    shutil.copytree(data / "val", tmp_path / "data" / "val")
    artifact = publish(tmp_path / "home")
    with pytest.raises(AgreementError, match=r"In int8, only .* Nothing was published"):
        add_precisions(artifact, ModelStore(tmp_path / "home"), ["int8"], tmp_path / "data")
    assert [each.id for each in ModelStore(tmp_path / "home").list()] == ["small:1"]
    assert not list((tmp_path / "home" / "models").glob(".staging-*/"))


def test_the_command_publishes_a_version_with_the_precision(home: Path, tmp_path: Path, data: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    environment = {"FC7_HOME": str(tmp_path / "copy"), "COLUMNS": "160"}
    command = ["models", "quantize", "small:1", "--precision", "fp16", "--data", str(data)]
    result = CliRunner().invoke(app, command, env=environment)
    assert result.exit_code == 0, result.output
    assert "Published small:3" in result.stdout
    assert "100.00% of 2" in result.stdout
    assert ModelStore(tmp_path / "copy").get("small").precisions == ("fp32", "fp16")
    shown = CliRunner().invoke(app, ["models", "show", "small:3"], env=environment).stdout
    assert "fp16.fc7_cosine" in shown
