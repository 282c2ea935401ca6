"""The reference for novelty that is made while a version is published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_store.artifact import Artifact
from model_store.image import prepare, views
from model_store.novelty.reference import NOVELTY_FILE, load_reference, reference_file
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner
from model_store.store import ModelStore
from model_store.training.evaluate import SplitImages
from model_store.training.export.novelty import PrecisionNovelty, training_images
from model_store.training.export.publish import export_run
from model_store.training.export.quantize import add_precisions
from model_store.training.runs.run import load_run
from tests.support.training.run_folder import write_pictures, write_run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_pictures(tmp_path / "data", split, images=6)
    return tmp_path / "data"


def vectors(artifact: Artifact, folder: Path) -> np.ndarray:
    runner = Runner(artifact, RunnerOptions(device="cpu", arithmetic="f32"))
    return runner.run(np.concatenate([views(prepare(path.read_bytes())) for path in sorted(folder.rglob("*.png"))])).fc7


def test_an_exported_version_has_the_distances_of_its_validation_images(tmp_path: Path, data: Path) -> None:
    exported = export_run(load_run(write_run(tmp_path, data)), ModelStore(tmp_path), view_counts=(1, 10))
    assert exported.has_novelty
    reference = load_reference(exported.artifact)
    assert reference is not None
    training, validation = (vectors(exported.artifact, data / split) for split in ("train", "val"))
    distances = np.sort(np.linalg.norm(validation[:, None] - training[None], axis=2), axis=1)[:, 9]
    np.testing.assert_allclose(reference.distances, np.sort(distances), rtol=0.03)
    metrics = exported.artifact.manifest.metrics["novelty"]
    assert (metrics["neighbor"], metrics["training_images"], metrics["validation_images"]) == (10, 18, 18)
    assert metrics["distances"]["0.95"] == pytest.approx(np.quantile(distances, 0.95), rel=0.03)
    assert reference.class_shares.sum() == pytest.approx(1)


def test_evaluated_images_are_never_in_the_reference(tmp_path: Path, data: Path) -> None:
    run = load_run(write_run(tmp_path, data))
    for split in ("train", "all"):
        exported = export_run(run, ModelStore(tmp_path), split=split)
        assert not exported.has_novelty
        assert reference_file(exported.artifact) is None
        assert "novelty" not in exported.artifact.manifest.metrics
    assert training_images([data / "nowhere"], SplitImages(data)) is None
    training = training_images([data / "nowhere", data], SplitImages(data))
    assert training is not None
    assert len(training) == 18


def test_training_images_that_are_gone_leave_the_version_without_novelty(tmp_path: Path, data: Path) -> None:
    for path in (data / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    assert not export_run(load_run(write_run(tmp_path, data)), ModelStore(tmp_path)).has_novelty


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
def test_a_precision_uses_the_reference_of_fp32_if_as_many_images_are_unknown(tmp_path: Path, data: Path) -> None:
    artifact = export_run(load_run(write_run(tmp_path, data)), ModelStore(tmp_path)).artifact
    version = add_precisions(artifact, ModelStore(tmp_path), ["fp16"], data)
    assert reference_file(version.at("fp16")) == reference_file(version) == NOVELTY_FILE
    measured = version.manifest.precisions["fp16"].metrics["novelty"]
    assert measured == {
        "own_reference": False,
        "unknown": measured["unknown_fp32"],
        "unknown_fp32": measured["unknown"],
    }
    assert version.manifest.metrics["novelty"] == artifact.manifest.metrics["novelty"]


def test_a_precision_whose_vectors_differ_gets_its_own_distances(tmp_path: Path, data: Path) -> None:
    artifact = export_run(load_run(write_run(tmp_path, data)), ModelStore(tmp_path)).artifact
    fc7 = vectors(artifact, data / "val")
    novelty = PrecisionNovelty(artifact)
    probabilities = np.full((len(fc7), 3), 1 / 3, np.float32)
    novelty.add(Outputs(probabilities, fc7), Outputs(probabilities, fc7 * np.float32(1.5)))
    (tmp_path / "int8").mkdir()
    measured = novelty.write(tmp_path / "int8")["novelty"]
    assert measured["own_reference"]
    assert measured["unknown"] > measured["unknown_fp32"] + 0.01
    assert (tmp_path / "int8" / NOVELTY_FILE).exists()
