"""OpenVINO on the CPU, with a small net that has convolutions."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import DeviceUnavailableError, MissingExtraError, RunnerError
from model_store.image import CROP
from model_store.runtime import openvino_engine
from model_store.runtime.openvino_engine import bf16_obstacle, bf16_support
from model_store.runtime.openvino_module import CORE
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.export.served_graph import write_served_graph
from model_store.transfer.remote_artifact import ShippedArtifact, ship
from tests.support.tiny_model import tiny_draft
from tests.support.training.run_folder import small_architecture, small_net

AGREES = {"images": 100, "views": 10, "top1_agreement": 1.0, "fc7_cosine": 0.99999, "fc7_distance": 0.004}
NATIVE = "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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


def test_arrays_that_are_read_only_or_not_contiguous_are_accepted(artifact: Artifact) -> None:
    flipped = pictures(3)[:, :, ::-1]
    fixed = flipped.copy()
    fixed.flags.writeable = False
    with runner(artifact) as found:
        wanted = found.run(flipped.copy()).fc7
        assert np.array_equal(found.run(flipped).fc7, wanted)
        assert np.array_equal(found.run(fixed).fc7, wanted)


FIRST_CONVERSIONS = """
import sys
import threading

from model_store.runtime.openvino_engine import import_openvino

together, openvino = threading.Barrier(8), import_openvino()
sys.setswitchinterval(1e-6)  # makes the order of the threads that hangs likely


def convert():
    together.wait()
    openvino.Type.f32.to_dtype()  # the first run of each thread does this


threads = [threading.Thread(target=convert, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_several_threads_may_start_their_first_runs_at_the_same_time() -> None:
    subprocess.run([sys.executable, "-c", FIRST_CONVERSIONS], check=True, timeout=60)


SIGNAL_AFTER_UNLOADING = """
import signal
import sys
import threading
from pathlib import Path

from model_store.artifact import Artifact
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner


def load():
    return [Runner(Artifact.open(Path(sys.argv[1])), RunnerOptions(device="cpu", engine="openvino"))]


signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second, third = load(), load(), load()
first.clear()
second.clear()
thread = threading.Thread(target=third.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_handled_after_models_were_unloaded(artifact: Artifact) -> None:
    command = [sys.executable, "-c", SIGNAL_AFTER_UNLOADING, str(artifact.path)]
    result = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert result.stdout.endswith("handled\n")


@pytest.mark.skipif(bf16_support() == "none", reason="OpenVINO cannot compute in bf16 on this CPU")
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
    ("measured", "words"),
    [
        ({}, "bf16 was not compared with f32"),
        (AGREES, None),
        (AGREES | {"images": 99}, "on 990 views of images, and not on at least 1,000"),
        (AGREES | {"images": 999, "views": 1}, "on 999 views of images"),
        (AGREES | {"top1_agreement": 0.998}, "the best class of f32 for 99.80% of the images"),
        (AGREES | {"fc7_cosine": 0.9998}, "is 0.999800, and not at least 0.9999"),
        (AGREES | {"fc7_distance": 0.011}, "is 1.1%, more than 1% of the distance"),
    ],
)
def test_bf16_is_used_if_the_version_agrees_and_the_cpu_has_it(
    tmp_path: Path, measured: dict[str, Any], words: str | None
) -> None:
    version = publish(tmp_path, bf16=measured)
    obstacle = bf16_obstacle(version)
    assert obstacle is None if words is None else words in str(obstacle)
    with runner(version) as found:
        assert found.arithmetic == ("bf16" if words is None and NATIVE else "f32")
    with runner(version, arithmetic="f32") as found:
        assert found.arithmetic == "f32"


ARITHMETIC = """
import sys
from pathlib import Path

import numpy as np

from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

version = ModelStore(Path(sys.argv[1])).get("small", 1)
pixels = np.load(sys.argv[2])
found = Runner(version, RunnerOptions(device="cpu"))
expected = Runner(version, RunnerOptions(device="cpu", engine="onnxruntime"))
fc7, wanted = found.run(pixels).fc7, expected.run(pixels).fc7
print(found.engine, found.arithmetic, np.abs(fc7 - wanted).max() < 1e-5 * wanted.max())
"""


@pytest.mark.parametrize(
    ("name", "value", "bf16"),
    [
        ("ONEDNN_MAX_CPU_ISA", "SSE41", False),
        ("ONEDNN_MAX_CPU_ISA", "avx2", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", False),  # bf16 is emulated
        ("DNNL_MAX_CPU_ISA", "AVX2", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", NATIVE),
        ("ONEDNN_MAX_CPU_ISA", "unknown", NATIVE),
    ],
)
def test_bf16_is_not_used_if_its_instructions_are_disabled(tmp_path: Path, name: str, value: str, bf16: bool) -> None:
    publish(tmp_path, bf16=AGREES)
    np.save(tmp_path / "pixels.npy", pictures(3))
    command = [sys.executable, "-c", ARITHMETIC, str(tmp_path), str(tmp_path / "pixels.npy")]
    done = subprocess.run(command, env=os.environ | {name: value}, capture_output=True, text=True, check=False)
    expected = "openvino bf16 False" if bf16 else "openvino f32 True"
    assert done.stdout.splitlines()[-1:] == [expected], done.stdout + done.stderr
    assert f"arithmetic={'bf16' if bf16 else 'f32'}" in done.stdout


def test_bf16_is_rejected_if_it_cannot_even_be_emulated(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "bf16_support", lambda: "none")
    with pytest.raises(RunnerError, match="OpenVINO cannot compute in bf16 on this CPU"):
        Runner(artifact, RunnerOptions(device="cpu", engine="openvino", arithmetic="bf16"))


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


WITHOUT_OPENVINO = """
import sys
from pathlib import Path

sys.modules["openvino"] = None

from model_store.errors import MissingExtraError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

version = ModelStore(Path(sys.argv[1])).get("small", 1)
Runner(version)
try:
    Runner(version, RunnerOptions(engine="openvino"))
except MissingExtraError as error:
    print(error)
"""


def test_the_log_names_the_engine_without_openvino(tmp_path: Path) -> None:
    publish(tmp_path, bf16=AGREES)
    command = [sys.executable, "-c", WITHOUT_OPENVINO, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, error = done.stdout.splitlines()
    assert "model loaded" in loaded
    for field in ("arithmetic=f32", "engine=onnxruntime", "provider=CPUExecutionProvider", "requested=auto"):
        assert field in loaded
    assert "pip install 'fc7[cpu]'" in error


def test_the_error_without_openvino_names_the_extra(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "model_store.runtime.openvino_module")
    with pytest.raises(MissingExtraError, match=r"pip install 'fc7\[cpu\]'"):
        Runner(artifact, RunnerOptions(engine="openvino"))


def test_runs_on_one_stream_and_at_the_same_time_give_the_answers_of_a_run_on_all_cores(artifact: Artifact) -> None:
    with runner(artifact, intra_op_threads=2) as found, ThreadPoolExecutor(4) as callers:
        assert found.streams == 2
        expected = [found.run(pictures(n)) for n in (1, 2, 5, 9)]
        for _ in range(3):
            outputs = callers.map(lambda n: found.run(pictures(n), all_cores=False), (1, 2, 5, 9))
            for output, wanted in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(output.fc7, wanted.fc7, atol=1e-5 * wanted.fc7.max())
                np.testing.assert_allclose(output.probabilities, wanted.probabilities, atol=1e-5)


@pytest.mark.parametrize(("threads", "streams"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 2), (6, 3), (8, 4)])
def test_each_stream_has_an_equal_part_of_the_threads(artifact: Artifact, threads: int, streams: int) -> None:
    with runner(artifact, intra_op_threads=threads) as found:
        assert found.streams == streams
        assert found.run(pictures(3)).fc7.shape == (3, 4096)
