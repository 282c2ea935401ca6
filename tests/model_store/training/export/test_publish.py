"""A trained run becomes a version whose outputs match torch, or nothing is published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.artifact import Artifact
from model_store.errors import CheckpointError, DatasetError
from model_store.image import prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.errors import ParityError
from model_store.training.evaluate import TorchPredictor
from model_store.training.export.publish import check_parity, export_run
from model_store.training.nets.alexnet import Architecture, Hidden
from model_store.training.runs.run import load_run
from tests.support.training.run_folder import (
    CLASSES,
    SMALL_LAYERS,
    small_architecture,
    small_net,
    write_pictures,
    write_run,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "data")
    return tmp_path / "data"


def published_models(home: Path) -> list[str]:
    models = home / "models"
    return sorted(path.name for path in models.iterdir() if path.is_dir()) if models.exists() else []


def test_an_exported_run_is_a_version_with_its_origin_and_its_errors(tmp_path: Path, data: Path) -> None:
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

    # The errors, computed again from the files in torch and NumPy.
    images = [(path, CLASSES.index(path.parent.name)) for path in sorted(data.glob("val/*/*.png"))]
    rows = np.concatenate([views(prepare(path.read_bytes())) for path, _ in images])
    probabilities = TorchPredictor("torch", run.info.classes, run.network, run.statistics.mean).both(rows)[0]
    wrong = np.mean(probabilities.argmax(axis=1) != [label for _, label in images])
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
        *("confusion.csv", "confusion.png", "conv1.png", "curves.png", "errors.csv", "metrics.json"),
        *("reliability.png", "worst_errors.csv", "worst_errors.png"),
    ]
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["top1_error"] == manifest.metrics["top1_error"]
    assert metrics["skipped"][0]["file"].endswith("val/red/cut.jpg")
    assert np.sum(metrics["confusion"]) == 12
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    np.testing.assert_allclose(runner.run(rows).probabilities, probabilities, atol=1e-5)


def test_a_net_with_nan_weights_is_not_published(tmp_path: Path, data: Path) -> None:
    home = tmp_path / "home"
    run = load_run(write_run(home, data))
    with torch.no_grad():
        run.network.fc8.bias[0] = float("nan")
    with pytest.raises(ParityError, match=r"nan in probabilities.*Nothing was published"):
        export_run(run, ModelStore(home))
    assert published_models(home) == []


def test_parity_fails_for_another_net_mean_image_or_fc7(tmp_path: Path, data: Path) -> None:
    home = tmp_path / "home"
    run = load_run(write_run(home, data))
    artifact = export_run(run, ModelStore(home)).artifact
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    images = np.stack([prepare(path.read_bytes()) for path in sorted(data.glob("val/*/*.png"))])
    same = TorchPredictor("same", run.info.classes, run.network, run.statistics.mean)
    parity = check_parity(runner, same, images)
    assert (parity.images, parity.probabilities < 1e-5, parity.fc7 < 1e-4) == (12, True, True)

    with torch.no_grad():
        run.network.get_parameter("fc7.weight").mul_(2)
        run.network.get_parameter("fc7.bias").mul_(2)
        run.network.fc8.weight.mul_(0.5)
    with pytest.raises(ParityError, match="fc7"):
        check_parity(runner, same, images)

    other = small_net(small_architecture(), seed=1)
    with pytest.raises(ParityError, match="in probabilities") as failure:
        check_parity(runner, TorchPredictor("other", run.info.classes, other, run.statistics.mean), images)
    assert failure.value.difference > 0.01
    with pytest.raises(ParityError):  # the mean image is part of the graph
        check_parity(runner, TorchPredictor("mean", run.info.classes, run.network, run.statistics.mean + 5), images)


def test_nothing_is_published_without_readable_images(tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    (data / "val" / "red").mkdir(parents=True)
    (data / "val" / "red" / "note.jpg").write_text("no picture")
    run = load_run(write_run(home, data))
    with pytest.raises(DatasetError, match=r"None of the 1 sampled images in .*val can be read.*note\.jpg"):
        export_run(run, ModelStore(home))
    assert published_models(home) == []


def test_a_net_with_another_size_of_fc7_is_rejected(tmp_path: Path, data: Path) -> None:
    layers = (*SMALL_LAYERS[:-1], Hidden("fc7", 64))
    run = load_run(write_run(tmp_path / "home", data, Architecture(3, layers)))
    with pytest.raises(CheckpointError, match=r"64 neurons in fc7.*4096"):
        export_run(run, ModelStore(tmp_path / "home"))
    assert published_models(tmp_path / "home") == []
