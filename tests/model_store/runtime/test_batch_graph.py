"""The graph for batches: selection, transfer and checks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from model_store.artifact import Artifact
from model_store.errors import ArtifactCorruptError, RunnerError
from model_store.remote_artifact import ShippedArtifact, ship
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from tests.model_store.runtime.test_runner import CPU, pictures
from tests.support.tiny_model import publish_tiny_model, publish_with_other_batches


@pytest.fixture(scope="module")
def with_batches(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish_with_other_batches(tmp_path_factory.mktemp("batches"))


def test_batches_on_the_cpu_use_the_graph_for_batches_if_there_is_one(with_batches: Artifact, tmp_path: Path) -> None:
    pixels = pictures(3)
    runner = Runner(with_batches, RunnerOptions(device="cpu", intra_op_threads=2, streams=2))
    single, batches = runner.run(pixels).fc7, runner.run_in_stream(pixels).fc7
    assert np.abs(single - batches).max() > 0.01
    np.testing.assert_allclose(Runner(with_batches, CPU).run(pixels).fc7, single, atol=1e-5)
    alone = Runner(with_batches, RunnerOptions(device="cpu", batches=True))
    np.testing.assert_allclose(alone.run(pixels).fc7, batches, atol=1e-5)
    artifact = publish_tiny_model(tmp_path)
    without = Runner(artifact, RunnerOptions(device="cpu", batches=True))
    np.testing.assert_allclose(without.run(pixels).fc7, Runner(artifact, CPU).run(pixels).fc7, atol=1e-5)


def test_remote_artifact_includes_the_graph_for_batches(with_batches: Artifact) -> None:
    arrived = ShippedArtifact(ship(with_batches))
    options = RunnerOptions(device="cpu", batches=True)
    np.testing.assert_array_equal(
        Runner(arrived, options).run(pictures(2)).fc7, Runner(with_batches, options).run(pictures(2)).fc7
    )


def test_loading_a_modified_graph_for_batches_names_the_file(with_batches: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "changed"
    shutil.copytree(with_batches.path, path)
    (path / "batches.bin").write_bytes(b"\0" * (path / "batches.bin").stat().st_size)
    with pytest.raises(ArtifactCorruptError, match=r"batches\.bin"):
        Artifact.open(path)
    unseen = Artifact(path, with_batches.manifest, verified=True)
    Runner(unseen, CPU)  # this one does not use it
    with pytest.raises(ArtifactCorruptError, match=r"batches\.bin"):
        Runner(unseen, RunnerOptions(device="cpu", streams=2))


def test_graph_for_batches_with_other_outputs_is_rejected_on_load(tmp_path: Path) -> None:
    artifact = publish_with_other_batches(tmp_path, outputs=1)
    Runner(artifact, CPU)
    for options in (RunnerOptions(device="cpu", streams=2), RunnerOptions(device="cpu", batches=True)):
        with pytest.raises(RunnerError, match="output fc7 of the graph is None"):
            Runner(artifact, options)
