"""Reading and verifying a version on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model_store.artifact import Artifact
from model_store.durable import sha256_of
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, ModelNameError
from model_store.manifest import FORMAT, FileEntry, class_labels, fingerprint_of
from tests.support.tiny_model import CLASSES, publish_tiny_model, tiny_draft


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return publish_tiny_model(tmp_path)


def fingerprint(model: Path, weights: Path) -> str:
    paths = {"model.onnx": model, "weights.bin": weights}
    files = {name: FileEntry(sha256=sha256_of(path), size=path.stat().st_size) for name, path in paths.items()}
    return fingerprint_of(files, "fp32")


def rewrite(artifact: Artifact, **changes: Any) -> None:
    path = artifact.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_artifact_has_everything_that_serving_needs(artifact: Artifact) -> None:
    again = Artifact.open(artifact.path)
    assert again.manifest == artifact.manifest
    assert again.verified
    assert (again.name, again.version, again.id, again.labels) == ("tiny", 1, "tiny:1", CLASSES)
    assert again.fingerprint == fingerprint(again.model_path, again.weights_path)
    values = json.loads((again.path / "manifest.json").read_bytes())
    assert values["format"] == FORMAT
    assert values["input"]["shape"] == ["N", 224, 224, 3]
    assert [(output["name"], output["shape"]) for output in values["outputs"]] == [
        ("probabilities", ["N", 6]),
        ("fc7", ["N", 4096]),
    ]
    assert values["created"].endswith("Z")
    assert set(values["files"]) == {"model.onnx", "weights.bin"}


def test_fingerprint_covers_only_graph_and_weights(tmp_path: Path) -> None:
    first, renamed, other = (
        publish_tiny_model(tmp_path, name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.fingerprint == renamed.fingerprint != other.fingerprint
    (tmp_path / "other.onnx").write_bytes(first.model_path.read_bytes() + b"\0")
    assert fingerprint(tmp_path / "other.onnx", first.weights_path) != first.fingerprint
    assert fingerprint(first.model_path, other.weights_path) != first.fingerprint


@pytest.mark.parametrize("name", ["weights.bin", "model.onnx"])
@pytest.mark.parametrize("harm", ["flip", "cut", "append", "delete"])
def test_the_error_names_a_modified_file(artifact: Artifact, name: str, harm: str) -> None:
    path = artifact.path / name
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-1]), "append": bytes(data) + b"\0", "delete": b""}[harm])
    if harm == "delete":
        path.unlink()
    with pytest.raises(ArtifactCorruptError, match=name) as caught:
        Artifact.open(artifact.path)
    assert caught.value.path == path
    assert caught.value.expected == artifact.manifest.files[name].sha256
    assert (caught.value.found == "missing") == (harm == "delete")
    assert not Artifact.open(artifact.path, verify=False).verified


def test_swapped_files_are_detected(artifact: Artifact) -> None:
    model, weights = artifact.model_path.read_bytes(), artifact.weights_path.read_bytes()
    artifact.model_path.write_bytes(weights)
    artifact.weights_path.write_bytes(model)
    with pytest.raises(ArtifactCorruptError):
        Artifact.open(artifact.path)


def test_newer_manifest_format_is_rejected_with_a_fix(artifact: Artifact) -> None:
    rewrite(artifact, format=FORMAT + 1, classes="unknown to us")
    with pytest.raises(ArtifactFormatError, match=rf"format {FORMAT + 1}.*up to {FORMAT}\. Install the version that"):
        Artifact.open(artifact.path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ('{"format": 1, "na', "not valid JSON"),
        ("[1, 2]", "format number is missing"),
        ('{"format": "1"}', "format number is missing"),
        ('{"format": 0}', "format number is missing"),
        ('{"format": 1}', "name: Field required"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_invalid_manifest_is_rejected(artifact: Artifact, text: str, reason: str) -> None:
    (artifact.path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactFormatError, match=reason):
        Artifact.open(artifact.path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint does not match"),
        ({"fingerprint": "short"}, "fingerprint"),
        ({"classes": []}, "classes"),
        ({"classes": [{"index": 1, "label": "x"}]}, "0, 1, 2"),
        ({"name": "../x"}, "is not a valid model name"),
        ({"version": 0}, "version"),
        ({"created": "2026-01-01T00:00:00"}, "created"),
        ({"files": {}}, "not listed"),
    ],
)
def test_inconsistent_manifest_is_rejected(artifact: Artifact, changes: dict[str, Any], reason: str) -> None:
    rewrite(artifact, **changes)
    with pytest.raises(ArtifactFormatError, match=reason):
        Artifact.open(artifact.path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "report/../../x", "a\\b", "./weights", ""])
def test_file_outside_the_version_is_rejected(artifact: Artifact, name: str) -> None:
    files = json.loads((artifact.path / "manifest.json").read_bytes())["files"]
    rewrite(artifact, files=files | {name: files["model.onnx"]})
    with pytest.raises(ArtifactFormatError, match="inside the version"):
        Artifact.open(artifact.path)


def test_folder_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match="the file does not exist"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "-x", "a b", "a:b", "é", "x" * 65, "a\n"])
def test_invalid_model_name_is_rejected(name: str) -> None:
    with pytest.raises(ModelNameError):
        tiny_draft(name)


def test_draft_with_missing_class_indices_or_unknown_fields_is_rejected() -> None:
    values = tiny_draft().model_dump()
    with pytest.raises(ValidationError, match="0, 1, 2"):
        type(tiny_draft()).model_validate(values | {"classes": class_labels(["a", "b"])[1:]})
    with pytest.raises(ValidationError, match="metrix"):
        type(tiny_draft()).model_validate(values | {"metrix": {}})
