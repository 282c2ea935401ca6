"""OpenVINO on the CPU, with a small net that has convolutions."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import DeviceUnavailableError, MissingExtraError
from model_store.image import CROP
from model_store.runtime import openvino_engine
from model_store.runtime.openvino_engine import agrees_in_bf16, import_openvino
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.export.served_graph import write_served_graph
from model_store.transfer.remote_artifact import ShippedArtifact, ship
from tests.support.tiny_model import tiny_draft
from tests.support.training.run_folder import small_architecture, small_net

AGREES = {"top1_agreement": 1.0, "fc7_cosine": 0.99999, "fc7_distance": 0.004}
NATIVE = "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def publish(home: Path, **metrics: Any) -> Artifact:
    """Publish a version of a small net with these metrics."""
    store = ModelStore(home)
    with store.staging("small") as staged:
        write_served_graph(small_net(small_architecture()), np.full((256, 256, 3), 120, np.float32), staged)
        draft = tiny_draft("small", classes=("a", "b", "c"))
        return store.publish(staged, draft.model_copy(update={"metrics": draft.metrics | metrics}))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish(tmp_path_factory.mktemp("home"))


def pictures(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, CROP, CROP, 3), dtype=np.uint8)


def runner(artifact: Artifact, **options: Any) -> closing[Runner]:
    return closing(Runner(artifact, RunnerOptions(**{"device": "cpu", "engine": "openvino"} | options)))


def test_outputs_equal_those_of_onnx_runtime(artifact: Artifact) -> None:
    with runner(artifact) as found, runner(artifact, engine="onnxruntime") as expected:
        assert (found.engine, expected.engine) == ("openvino", "onnxruntime")
        for n in (1, 2, 7, 20):
            outputs, wanted = found.run(pictures(n)), expected.run(pictures(n))
            np.testing.assert_allclose(outputs.probabilities, wanted.probabilities, atol=1e-5)
            np.testing.assert_allclose(outputs.fc7, wanted.fc7, atol=1e-5 * wanted.fc7.max())


def test_bf16_is_close_to_f32_for_every_batch_size(artifact: Artifact) -> None:
    with runner(artifact, arithmetic="bf16") as found, runner(artifact, arithmetic="f32") as expected:
        assert (found.arithmetic, expected.arithmetic) == ("bf16", "f32")
        for n in (1, 3, 16, 18):  # padded, exact and in two parts
            fc7, wanted = found.run(pictures(n)).fc7, expected.run(pictures(n)).fc7
            assert fc7.shape == (n, 4096)
            assert not np.array_equal(fc7, wanted)
            cosines = (fc7 * wanted).sum(axis=1) / np.linalg.norm(fc7, axis=1) / np.linalg.norm(wanted, axis=1)
            assert cosines.min() > 0.999


@pytest.mark.parametrize(
    ("metrics", "allowed"),
    [
        ({}, False),
        ({"bf16": AGREES}, True),
        ({"bf16": AGREES | {"top1_agreement": 0.998}}, False),
        ({"bf16": AGREES | {"fc7_cosine": 0.9998}}, False),
        ({"bf16": AGREES | {"fc7_distance": 0.011}}, False),
    ],
)
def test_bf16_is_used_if_the_version_agrees_and_the_cpu_has_it(
    tmp_path: Path, metrics: dict[str, Any], allowed: bool
) -> None:
    version = publish(tmp_path, **metrics)
    assert agrees_in_bf16(version) is allowed
    with runner(version) as found:
        assert found.arithmetic == ("bf16" if allowed and NATIVE else "f32")
    with runner(version, arithmetic="f32") as found:
        assert found.arithmetic == "f32"


def test_a_version_without_its_folder_runs(artifact: Artifact) -> None:
    with runner(ShippedArtifact(ship(artifact))) as found, runner(artifact) as expected:
        np.testing.assert_array_equal(found.run(pictures(3)).fc7, expected.run(pictures(3)).fc7)


def test_openvino_is_not_combined_with_cuda(artifact: Artifact, tmp_path: Path) -> None:
    for options in ({"device": "cuda"}, {"device": "auto", "tensorrt": tmp_path}):
        with pytest.raises(DeviceUnavailableError, match="FC7_ENGINE is openvino, which runs on the CPU"):
            Runner(artifact, RunnerOptions(engine="openvino", **options))


def test_nothing_about_its_use_is_sent_to_anyone(artifact: Artifact, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from model_store.runtime.options import RunnerOptions\n"
        "from model_store.runtime.runner import Runner\n"
        "from model_store.store import ModelStore\n"
        "Runner(ModelStore(Path(sys.argv[1])).get('small', 1), RunnerOptions(device='cpu', engine='openvino'))\n"
        "assert 'openvino' in sys.modules\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(artifact.path.parents[2])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [], "OpenVINO's telemetry writes its client ID there"


@pytest.mark.parametrize(("machine", "installed"), [("x86_64", False), ("aarch64", True)])
def test_onnx_runtime_is_used_without_openvino_and_on_other_processors(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, machine: str, installed: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    if not installed:
        monkeypatch.setattr(openvino_engine, "find_spec", lambda _name: None)
    with runner(artifact, engine="auto") as found:
        assert (found.engine, found.provider, found.arithmetic) == ("onnxruntime", "CPUExecutionProvider", "f32")


def test_the_error_without_openvino_names_the_extra(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fc7\[cpu\]'"):
        Runner(artifact, RunnerOptions(engine="openvino"))
