"""The rows that one worker returns, and the identity of its code, all without a running Ray."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.bulk.ray.worker import Embedder, WorkerPlan, code_identity
from model_store.decoder.limits import DecodeLimits
from model_store.errors import ArtifactCorruptError
from model_store.image import prepare, views
from model_store.manifest import MODEL_FILE
from model_store.runtime.options import EngineName, RunnerOptions
from model_store.runtime.runner import Runner
from model_store.transfer.remote_artifact import ShippedArtifact, ship
from tests.index.bulk.helpers import save_image
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.int8_model import publish_int8_model


def test_code_identity_covers_sub_packages_but_not_training(tmp_path: Path) -> None:
    for package in ("model_store", "index"):
        shutil.copytree(Path(package), tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert code_identity(tmp_path) == code_identity()
    (tmp_path / "model_store/training/new.py").write_text("x = 1\n")
    assert code_identity(tmp_path) == code_identity(), "no worker runs training code"
    (tmp_path / "index/deep/er").mkdir(parents=True)
    (tmp_path / "index/deep/er/new.py").write_text("x = 1\n")
    added = code_identity(tmp_path)
    (tmp_path / "index/deep/er/new.py").write_text("x = 2\n")
    changed = code_identity(tmp_path)
    (tmp_path / "index/deep/er/new.py").rename(tmp_path / "index/deep/er/other.py")
    assert len({code_identity(), added, changed, code_identity(tmp_path)}) == 4


def plan(source: Path, code: str | None = None) -> WorkerPlan:
    return WorkerPlan(
        location=str(source),
        options=RunnerOptions(device="cpu"),
        batch_size=2,
        threads=2,
        limits=DecodeLimits(),
        keep_pictures=True,
        code=code or code_identity(),
    )


def test_worker_returns_a_row_for_every_file_with_the_runners_vector(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for n in range(3):
        save_image(photos / f"{n}.png", n)
    (photos / "text.png").write_text("not an image")
    artifact = publish_tiny_model(tmp_path / "home")
    worker = Embedder(plan(photos), ship(artifact))
    names = ["0.png", "1.png", "text.png", "2.png", "gone.png"]
    first = worker.embed(names, [""] * 5).to_pylist()
    assert [row["name"] for row in first] == names
    assert [row["status"] for row in first] == ["embedded", "embedded", "skipped", "embedded", "skipped"]
    assert (first[0]["width"], first[0]["height"], first[0]["size"]) == (320, 240, (photos / "0.png").stat().st_size)
    assert prepare(first[0]["picture"]).shape == (256, 256, 3)
    runner = Runner(artifact)
    expected = runner.run(views(prepare((photos / "2.png").read_bytes())[np.newaxis])).fc7[0].astype(np.float16)
    np.testing.assert_array_equal(np.frombuffer(first[3]["vector"], np.float16), expected)
    again = worker.embed(names[:2], [first[0]["sha256"], "another"]).to_pylist()
    assert [row["status"] for row in again] == ["unchanged", "embedded"]


def test_failed_worker_reports_the_reason_in_every_row(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    version = ship(publish_tiny_model(tmp_path / "home"))
    other = Embedder(plan(tmp_path / "photos", code="0" * 16), version)
    assert [row["status"] for row in other.embed(["a", "b"], ["", ""]).to_pylist()] == ["failed", "failed"]
    assert "another version of fc7" in other.embed(["a"], [""]).to_pylist()[0]["reason"]
    misplaced = Embedder(plan(tmp_path / "elsewhere"), version)
    assert "does not exist" in misplaced.embed(["a"], [""]).to_pylist()[0]["reason"]


def test_worker_that_computes_other_vectors_than_the_index_has_refuses(tmp_path: Path) -> None:
    artifact = publish_int8_model(tmp_path / "home", tmp_path / "data").at("int8")
    pairs: list[tuple[EngineName, EngineName]] = [("onnxruntime", "openvino"), ("openvino", "onnxruntime")]
    for engine, other in pairs:
        version = ship(artifact.at("int8", engine))
        results = {}
        for each in (engine, other):
            work = replace(plan(tmp_path / "data"), options=RunnerOptions(device="cpu", engine=each))
            [results[each]] = Embedder(work, version).embed(["val/red/0.png"], [""]).to_pylist()
        assert (results[engine]["status"], results[other]["status"]) == ("embedded", "failed")
        expected, found = (artifact.at("int8", each).embedder for each in (engine, other))
        assert f"computes vectors of {found}, but the index needs those of {expected}" in results[other]["reason"]


def test_version_that_changed_in_transit_is_rejected(tmp_path: Path) -> None:
    artifact = publish_tiny_model(tmp_path)
    version = ship(artifact)
    assert ShippedArtifact(version).fingerprint == artifact.fingerprint
    files = {name: data.copy() for name, data in version.files.items()}
    files[MODEL_FILE][40] ^= 1
    with pytest.raises(ArtifactCorruptError, match=MODEL_FILE):
        Runner(ShippedArtifact(replace(version, files=files)))
