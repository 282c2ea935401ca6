"""A version with another head: same vectors, shared weights, and everything that versions can do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_store.artifact import Artifact
from model_store.errors import ArtifactCorruptError
from model_store.head.errors import HeadGraphError
from model_store.head.fit import FittedHead, fit_head
from model_store.head.graph import replace_head
from model_store.head.publish import publish_head
from model_store.image import views
from model_store.runtime.options import EngineName, RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.transfer.archive import export_version, import_version
from model_store.transfer.remote_artifact import ShippedArtifact, ship
from tests.support.tiny_model import publish_tiny_model, tiny_draft


@pytest.fixture
def parent(tmp_path: Path) -> Artifact:
    return publish_tiny_model(tmp_path)


def fitted(parent: Artifact) -> FittedHead:
    """Return a head with the new class "owl", fitted to random vectors."""
    labels = ["owl", "cat", "dog"] * 8
    rows = np.random.default_rng(0).random((len(labels), 4096), np.float32)
    rows += np.arange(len(labels))[:, None] % 3
    return fit_head(rows, labels, known=parent.labels)


def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return views(np.random.default_rng(1).integers(0, 256, (5, 256, 256, 3), np.uint8))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_only_the_last_layer_changes(parent: Artifact, tmp_path: Path, engine: EngineName) -> None:
    result = fitted(parent)
    version = publish_head(ModelStore(tmp_path), parent, result, {"field": "label"})
    assert version.labels == ("cat", "dog", "owl")
    assert version.fingerprint == parent.fingerprint
    assert version.manifest.fingerprint != parent.manifest.fingerprint
    assert version.manifest.parent_version == parent.id
    options = RunnerOptions(device="cpu", engine=engine, arithmetic="f32")
    before, after = Runner(parent, options).run(pixels()), Runner(version, options).run(pixels())
    assert np.array_equal(before.fc7, after.fc7)
    scores = after.fc7 @ result.head.weights.T + result.head.biases
    expected = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert np.allclose(after.probabilities, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_the_graph_is_valid_and_has_no_rest_of_the_old_layer(parent: Artifact, tmp_path: Path) -> None:
    version = publish_head(ModelStore(tmp_path), parent, fitted(parent), {})
    onnx.checker.check_model(version.model_path, full_check=True)
    graph = onnx.load_model(version.model_path, load_external_data=False).graph
    assert [node.op_type for node in graph.node][-3:] == ["Relu", "Gemm", "Softmax"]
    assert {tensor.name for tensor in graph.initializer} == {"centre", "fc7_weight", "fc8.weight", "fc8.bias"}


def test_a_head_outlives_its_parent(parent: Artifact, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    version = publish_head(store, parent, fitted(parent), {})
    assert version.weights_path.stat().st_nlink == 1  # onnx refuses weights with several hard links
    store.activate(version.name, version.version)
    store.remove(parent.name, parent.version)
    Artifact.open(version.path)  # verifies all files
    again = publish_head(store, version, fitted(version), {})
    assert again.fingerprint == version.fingerprint  # also for a head of a head
    assert again.manifest.base_graphs == version.manifest.base_graphs


def test_a_head_survives_an_archive_and_a_transfer(parent: Artifact, tmp_path: Path) -> None:
    version = publish_head(ModelStore(tmp_path), parent, fitted(parent), {})
    export_version(version, tmp_path / "head.fc7.tar")
    other = ModelStore(tmp_path / "other")
    loaded = import_version(other, tmp_path / "head.fc7.tar")
    assert loaded.fingerprint == parent.fingerprint
    assert loaded.labels == version.labels
    shipped = Runner(ShippedArtifact(ship(version)), RunnerOptions(device="cpu"))
    assert shipped.artifact.fingerprint == parent.fingerprint
    assert shipped.run(pixels()).probabilities.shape == (5, 3)


def test_all_precisions_get_the_head(parent: Artifact, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with store.staging("tiny") as staged:
        for name in parent.manifest.files:
            shutil.copy(parent.path / name, staged / name)
        shutil.copytree(parent.path, staged / "int8", ignore=lambda *_: ["manifest.json"])
        draft = tiny_draft().model_copy(update={"precisions": {"int8": {"k": 1}}})
        both = store.publish(staged, draft)
    version = publish_head(store, both.at("int8"), fitted(both), {})
    assert version.precision == "int8"
    assert version.fingerprint == both.at("int8").fingerprint
    assert version.at("fp32").fingerprint == both.fingerprint
    assert Runner(version, RunnerOptions(device="cpu")).run(pixels()).probabilities.shape == (5, 3)


def test_damaged_weights_are_not_published(parent: Artifact, tmp_path: Path) -> None:
    data = bytearray(parent.weights_path.read_bytes())
    data[100] ^= 1
    parent.weights_path.write_bytes(data)
    with pytest.raises(ArtifactCorruptError):
        publish_head(ModelStore(tmp_path), parent, fitted(parent), {})
    assert [each.id for each in ModelStore(tmp_path).list()] == ["tiny:1"]


@pytest.mark.parametrize("model", [b"", b"\x00\x01", b"hello"])
def test_what_is_no_graph_is_rejected(model: bytes) -> None:
    with pytest.raises(HeadGraphError):
        replace_head(model, np.zeros((2, 4096), np.float32), np.zeros(2, np.float32))
