"""What is found out before a cluster works, where images come from, and what one worker answers: all without Ray."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index.bulk.ray.cluster import Node, Placement, join, judge, place_actors
from index.bulk.ray.worker import Embedder, WorkerPlan, code_identity
from index.bulk.sources import FolderSource, RemoteSource, open_source
from index.errors import ClusterError, SourceError
from model_store.artifact import MODEL_FILE
from model_store.errors import ArtifactCorruptError, MissingExtraError
from model_store.image import DEFAULT_MAX_PIXELS, prepare, views
from model_store.remote_artifact import ShippedArtifact, ShippedVersion, ship
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from tests.index.bulk.test_folder import save
from tests.support.tiny_model import publish_tiny_model

CPUS = Node("a", "10.0.0.1", 8, 0)
GPUS = Node("b", "10.0.0.2", 16, 2)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_addresses_where_no_ray_can_be_are_refused_in_seconds() -> None:
    began = time.monotonic()
    for address, words in (
        ("127.0.0.1:1", "nobody answers there .*GCS port"),
        ("ray://head:10001", "start this on a machine of the cluster"),
        ("http://head:6379", "no address to join"),
        ("head", "no address to join"),
        ("head:port", "no address to join"),
    ):
        with pytest.raises(ClusterError, match=words), join(address, object_store_bytes=1):
            pass
    assert time.monotonic() - began < 10


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"fc7\[ray\]"), join("local", object_store_bytes=1):
        pass


def test_nodes_without_fc7_with_another_or_without_the_source_are_named() -> None:
    judge("x", [CPUS, GPUS], [(code_identity(), ""), (code_identity(), "")])
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1 cannot import fc7 \(No module named 'index'\): pip install"):
        judge("x", [CPUS], [("", "No module named 'index'")])
    with pytest.raises(ClusterError, match=r"10\.0\.0\.2 has another fc7 \(code 0123.*install the same version"):
        judge("x", [CPUS, GPUS], [(code_identity(), ""), ("0123", "")])
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1 does not see the source: gone"):
        judge("x", [CPUS], [(code_identity(), "gone")])
    with pytest.raises(ClusterError, match="no node"):
        judge("x", [], [])


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


def test_actors_get_cpus_and_gpus_by_the_device() -> None:
    assert place_actors("x", [CPUS], None, None, "auto") == Placement(8, 1, 0)
    assert place_actors("x", [CPUS], 3, 2, "cpu") == Placement(3, 2, 0)
    assert place_actors("x", [CPUS, GPUS], None, None, "cpu") == Placement(24, 1, 0)
    assert place_actors("x", [CPUS, GPUS], None, None, "auto") == Placement(2, 8, 1)
    assert place_actors("x", [CPUS, GPUS], 9, 4, "cuda") == Placement(2, 4, 1)
    with pytest.raises(ClusterError, match=r"9 CPUs for an actor \(nodes: 10\.0\.0\.1 has 8 CPUs"):
        place_actors("x", [CPUS], None, 9, "auto")
    with pytest.raises(ClusterError, match="and a GPU"):
        place_actors("x", [CPUS], None, None, "cuda")


def test_a_folder_and_its_uri_list_and_read_the_same(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.JPG", "a/notes.txt", ".hidden/3.png", "c.png", "b/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    folder, remote = FolderSource(tmp_path), RemoteSource(tmp_path.as_uri() + "/")
    assert list(folder.list()) == list(remote.list()) == ["a/1.JPG", "b/2.png", "c.png"]
    assert folder.read("b/2.png") == remote.read("b/2.png") == b"b/2.png"
    for source in (folder, remote):
        source.check()
        with pytest.raises(OSError, match="gone"):
            source.read("gone.png")


def test_sources_that_are_not_there_are_one_error_with_the_mend(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for place in (str(missing), missing.as_uri()):
        source = open_source(place)
        with pytest.raises(SourceError, match="no such folder"):
            source.check()
        with pytest.raises(SourceError, match="missing"):
            list(source.list())
    with pytest.raises(SourceError, match=r"wat://x.*s3://BUCKET"):
        open_source("wat://x")


def plan(source: Path, code: str | None = None) -> WorkerPlan:
    return WorkerPlan(
        place=str(source),
        code=code or code_identity(),
        options=RunnerOptions(device="cpu"),
        batch_size=2,
        threads=2,
        max_pixels=DEFAULT_MAX_PIXELS,
        keep_pictures=True,
    )


def test_a_worker_answers_for_every_file_with_what_the_runner_says(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for n in range(3):
        save(photos / f"{n}.png", n)
    (photos / "text.png").write_text("no picture")
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


def test_a_worker_that_cannot_work_says_why_in_its_answers(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    version = ship(publish_tiny_model(tmp_path / "home"))
    other = Embedder(plan(tmp_path / "photos", code="0" * 16), version)
    assert [row["status"] for row in other.embed(["a", "b"], ["", ""]).to_pylist()] == ["failed", "failed"]
    assert "another fc7" in other.embed(["a"], [""]).to_pylist()[0]["reason"]
    lost = Embedder(plan(tmp_path / "elsewhere"), version)
    assert "no such folder" in lost.embed(["a"], [""]).to_pylist()[0]["reason"]


def test_a_version_that_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    artifact = publish_tiny_model(tmp_path)
    version = ship(artifact)
    assert ShippedArtifact(version).fingerprint == artifact.fingerprint
    files = {name: data.copy() for name, data in version.files.items()}
    files[MODEL_FILE][40] ^= 1
    with pytest.raises(ArtifactCorruptError, match=MODEL_FILE):
        Runner(ShippedArtifact(ShippedVersion(version.manifest, version.precision, files)))
