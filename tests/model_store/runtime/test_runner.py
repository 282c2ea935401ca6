"""Running a version in the real engines on the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import structlog
from numpy.typing import NDArray
from onnx import numpy_helper

from model_store.artifact import Artifact
from model_store.errors import ArtifactCorruptError, DeviceUnavailableError, RunnerError, ShapeError
from model_store.image import CROP
from model_store.runtime.onnxruntime_engine import OnnxRuntimeEngine, _cuda_options, _tensorrt_options
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner, average_views, top_k
from model_store.store import ModelStore
from tests.support.tiny_model import publish_tiny_model, tiny_draft, write_tiny_graph

CPU = RunnerOptions(device="cpu", engine="onnxruntime")


@pytest.fixture(params=["onnxruntime", "openvino"])
def cpu(request: pytest.FixtureRequest) -> RunnerOptions:
    """Each engine."""
    return RunnerOptions(device="cpu", engine=request.param)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish_tiny_model(tmp_path_factory.mktemp("home"))


def pictures(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, CROP, CROP, 3), dtype=np.uint8)


def expected_outputs(artifact: Artifact, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the outputs of the tiny graph, computed with NumPy."""
    model = onnx.load(artifact.model_path)
    weight = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    grid = (pixels - 127.5).reshape(-1, 7, 32, 7, 32, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    fc7 = np.maximum(grid.reshape(len(pixels), -1) @ weight["fc7_weight"], 0)
    raised = np.exp(fc7 @ weight["fc8_weight"])
    return raised / raised.sum(axis=1, keepdims=True), fc7


def test_outputs_equal_the_graphs_for_every_batch_size(artifact: Artifact, cpu: RunnerOptions) -> None:
    runner = Runner(artifact, cpu)
    provider = "OpenVINO" if cpu.engine == "openvino" else "CPUExecutionProvider"
    assert (runner.engine, runner.device, runner.provider) == (cpu.engine, "cpu", provider)
    assert (runner.arithmetic, runner.classes) == ("f32", 6)
    for n in (3, 1, 16, 29):
        pixels = pictures(n, seed=n)
        outputs = runner.run(pixels)
        assert outputs.probabilities.dtype == outputs.fc7.dtype == np.float32
        assert (outputs.probabilities.shape, outputs.fc7.shape) == ((n, 6), (n, 4096))
        probabilities, fc7 = expected_outputs(artifact, pixels)
        np.testing.assert_allclose(outputs.probabilities, probabilities, atol=1e-5)
        np.testing.assert_allclose(outputs.fc7, fc7, atol=1e-5)


def test_non_contiguous_arrays_give_the_same_outputs(artifact: Artifact, cpu: RunnerOptions) -> None:
    runner, pixels = Runner(artifact, cpu), pictures(4)
    np.testing.assert_array_equal(runner.run(pixels[::-2]).fc7, runner.run(pixels[::-2].copy()).fc7)


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.zeros((1, 224, 224, 3), np.float32), "float32"),
        (np.zeros((224, 224, 3), np.uint8), r"\[224, 224, 3\]"),
        (np.zeros((1, 3, 224, 224), np.uint8), r"\[1, 3, 224, 224\]"),
        (np.zeros((1, 256, 256, 3), np.uint8), r"\[1, 256, 256, 3\]"),
        (np.zeros((0, 224, 224, 3), np.uint8), r"\[0, 224, 224, 3\]"),
    ],
)
def test_other_shapes_and_dtypes_are_rejected(
    artifact: Artifact, pixels: NDArray[np.uint8], found: str, cpu: RunnerOptions
) -> None:
    with pytest.raises(ShapeError, match=found):
        Runner(artifact, cpu).run(pixels)


def test_runner_is_thread_safe(artifact: Artifact, cpu: RunnerOptions) -> None:
    runner = Runner(artifact, cpu)
    batches = [pictures(1 + seed % 3, seed) for seed in range(12)]
    alone = [runner.run(batch).fc7 for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for fc7, expected in zip(pool.map(lambda batch: runner.run(batch).fc7, batches), alone, strict=True):
            np.testing.assert_allclose(fc7, expected, atol=1e-6)


def test_closed_runner_raises_a_clear_error(artifact: Artifact, cpu: RunnerOptions) -> None:
    runner = Runner(artifact, cpu)
    runner.warm_up((1, 2))
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match="tiny:1 failed: the runner is closed"):
        runner.run(pictures(1))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed"
)
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_requested_cuda_device_that_is_not_available_is_rejected(artifact: Artifact, device: str) -> None:
    with pytest.raises(
        DeviceUnavailableError, match=rf"device {device} was.*CPUExecutionProvider.*FC7_DEVICE to cpu"
    ) as caught:
        Runner(artifact, RunnerOptions(device=device))
    assert caught.value.device == device
    assert "CPUExecutionProvider" in caught.value.available


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed"
)
def test_auto_uses_the_cpu_without_cuda_and_logs_it(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()  # another test may have called a command, which only logs warnings
    assert Runner(artifact, RunnerOptions()).device == "cpu"
    line = "arithmetic=f32 device=cpu engine=openvino model=tiny:1 provider=OpenVINO requested=auto"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cpu:0", "auto:1"])
def test_unknown_device_is_rejected(device: str) -> None:
    with pytest.raises(DeviceUnavailableError, match='"cuda:N"'):
        RunnerOptions(device=device)


def test_modified_version_is_not_loaded(tmp_path: Path, cpu: RunnerOptions) -> None:
    artifact = publish_tiny_model(tmp_path)
    with artifact.weights_path.open("r+b") as file:
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(ArtifactCorruptError, match=r"weights\.bin"):
        Runner(ModelStore(tmp_path).get("tiny", verify=False), cpu)


@pytest.mark.parametrize("size", [0, 100])
def test_truncated_weights_are_named(tmp_path: Path, cpu: RunnerOptions, size: int) -> None:
    artifact = publish_tiny_model(tmp_path)
    os.truncate(artifact.weights_path, size)
    with pytest.raises(ArtifactCorruptError, match=r"weights\.bin"):
        Runner(ModelStore(tmp_path).get("tiny", verify=False), cpu)


def test_graph_with_other_inputs_or_outputs_is_rejected(tmp_path: Path, cpu: RunnerOptions) -> None:
    store = ModelStore(tmp_path)
    with store.staging("bare") as staged:
        write_tiny_graph(staged, outputs=1)
        bare = store.publish(staged, tiny_draft("bare"))
    with pytest.raises(RunnerError, match=r"bare:1.*output fc7 of the graph is None"):
        Runner(bare, cpu)
    with store.staging("few") as staged:
        write_tiny_graph(staged, classes=5)
        few = store.publish(staged, tiny_draft("few"))
    with pytest.raises(RunnerError, match=r"few:1.*probabilities.*\[5\].*\[6\]"):
        Runner(few, cpu)


def test_invalid_graph_raises_runner_error(tmp_path: Path, cpu: RunnerOptions) -> None:
    store = ModelStore(tmp_path)
    with store.staging("none") as staged:
        (staged / "model.onnx").write_bytes(b"no graph")
        (staged / "weights.bin").write_bytes(b"")
        none = store.publish(staged, tiny_draft("none"))
    with pytest.raises(RunnerError, match=r"none:1.*model\.onnx cannot be loaded"):
        Runner(none, cpu)


def test_failure_inside_onnx_runtime_raises_runner_error(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with store.staging("bad") as staged:
        write_tiny_graph(staged)
        model = onnx.load(staged / "model.onnx", load_external_data=False)
        # The declared shape allows any n, but this reshape allows only n = 2, so it fails when it runs.
        shape = numpy_helper.from_array(np.array([2, 147], np.int64), "two_rows")
        model.graph.initializer.append(shape)
        flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
        flatten.op_type = "Reshape"
        flatten.input.append("two_rows")
        (staged / "model.onnx").write_bytes(model.SerializeToString())
        bad = store.publish(staged, tiny_draft("bad"))
    runner = Runner(bad, CPU)
    assert runner.run(pictures(2)).fc7.shape == (2, 4096)
    with pytest.raises(RunnerError, match=r"bad:1 failed.*147"):
        runner.run(pictures(1))


def count_threads(expected: int | None = None) -> int:
    """Count the threads of this process; wait for `expected`, because a joined thread may not disappear immediately."""
    until = time.monotonic() + 5
    while True:
        count = len(os.listdir(f"/proc/{os.getpid()}/task"))  # noqa: PTH208
        if expected in (None, count) or time.monotonic() > until:
            return count
        time.sleep(0.01)


def test_number_of_threads_of_a_run_is_limited(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RunnerOptions(intra_op_threads=0)

    before = count_threads()
    one = Runner(artifact, replace(CPU, intra_op_threads=1))
    assert count_threads(before) == before
    three = Runner(artifact, replace(CPU, intra_op_threads=3))
    assert count_threads(before + 2) == before + 2
    np.testing.assert_allclose(one.run(pictures(2)).fc7, three.run(pictures(2)).fc7, atol=1e-5)


def test_the_error_without_onnx_runtime_names_the_extra(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not installed')")
    program = """
import sys
from pathlib import Path
from model_store.errors import MissingExtraError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
try:
    Runner(ModelStore(Path(sys.argv[1])).active_artifact(), RunnerOptions(engine="onnxruntime"))
except MissingExtraError as error:
    print(error)
assert "torch" not in sys.modules
"""
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install 'fc7[cpu]' or pip install 'fc7[gpu]'" in done.stdout


def test_closing_lets_running_calls_finish(artifact: Artifact, cpu: RunnerOptions) -> None:
    runner, stop, failures = Runner(artifact, cpu), threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            try:
                runner.run(pictures(2))
            except RunnerError as error:
                failures.append(error.reason)
                return

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    runner.close()
    for worker in workers:
        worker.join(5)
    stop.set()
    assert failures == ["the runner is closed"] * 3


def test_views_are_averaged_for_each_picture() -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    found = average_views(values, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [values[:3].mean(axis=0), values[3:].mean(axis=0)])
    np.testing.assert_array_equal(average_views(values, 1), values)
    with pytest.raises(ShapeError, match="multiples of 4"):
        average_views(values, 4)


def test_top_k_is_sorted_and_ties_keep_class_order() -> None:
    rows = np.array([[0.1, 0.4, 0.1, 0.4, 0.0], [0, 0, 1, 0, 0]], np.float32)
    indices, values = top_k(rows, 4)
    assert indices.dtype == np.int64
    assert values.dtype == np.float32
    assert indices.tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]
    np.testing.assert_array_equal(values, np.array([[0.4, 0.4, 0.1, 0.1], [1, 0, 0, 0]], np.float32))
    many = np.random.default_rng(0).integers(0, 9, (1, 1000)).astype(np.float32)
    assert top_k(many, 1000)[0].tolist() == [sorted(range(1000), key=lambda index: (-many[0, index], index))]


@pytest.mark.parametrize("k", [0, -1, 6, 10_000])
def test_top_k_rejects_k_outside_the_number_of_classes(k: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 5"):
        top_k(np.zeros((1, 5), np.float32), k)
    with pytest.raises(ShapeError):
        top_k(np.zeros(5, np.float32))


def test_changing_the_folder_while_serving_does_not_change_outputs(tmp_path: Path, cpu: RunnerOptions) -> None:
    artifact = publish_tiny_model(tmp_path)
    runner, pixels = Runner(artifact, cpu), pictures(2)
    before = runner.run(pixels)
    with artifact.weights_path.open("r+b") as file:
        file.write(bytes(1_000_000))
        file.flush()
        assert np.array_equal(runner.run(pixels).probabilities, before.probabilities)
        file.truncate(0)
    assert np.array_equal(runner.run(pixels).fc7, before.fc7)
    shutil.rmtree(artifact.path)
    assert np.array_equal(runner.run(pixels).fc7, before.fc7)


def test_the_error_names_a_file_that_changed_between_verification_and_loading(
    tmp_path: Path, cpu: RunnerOptions
) -> None:
    artifact = publish_tiny_model(tmp_path)
    assert artifact.verified
    with artifact.weights_path.open("r+b") as file:
        file.write(b"edited")
    with pytest.raises(ArtifactCorruptError, match=r"weights\.bin"):
        Runner(artifact, cpu)


def test_io_binding_gives_the_same_outputs_as_new_arrays(artifact: Artifact) -> None:
    plain, bound = Runner(artifact, CPU), Runner(artifact, replace(CPU, bind=True))
    kept = [(pictures(n, seed), bound.run(pictures(n, seed))) for seed, n in enumerate((3, 1, 3, 16, 1))]
    for pixels, outputs in kept:  # after later runs of the same size wrote to the same buffers
        for found, wanted in zip(outputs, plain.run(pixels), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_io_binding_is_thread_safe(artifact: Artifact) -> None:
    plain, bound = Runner(artifact, CPU), Runner(artifact, replace(CPU, bind=True))
    batches = [pictures(2, seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for pixels, outputs in zip(batches, pool.map(bound.run, batches), strict=True):
            np.testing.assert_array_equal(outputs.fc7, plain.run(pixels).fc7)
    bound.close()
    with pytest.raises(RunnerError, match="closed"):
        bound.run(pictures(1))


def test_failure_with_io_binding_raises_runner_error(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Runner(artifact, replace(CPU, bind=True))

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error 700: an illegal memory access was encountered")

    engine = bound._engine
    assert isinstance(engine, OnnxRuntimeEngine)
    assert engine._bound is not None
    monkeypatch.setattr(engine._bound._session, "run_with_iobinding", fail)
    with pytest.raises(RunnerError, match="CUDA error 700"):
        bound.run(pictures(1))


def test_cuda_only_options_are_rejected_without_cuda(artifact: Artifact, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    for options in (RunnerOptions(cuda_graphs=True), RunnerOptions(tensorrt=tmp_path)):
        with pytest.raises(DeviceUnavailableError, match=r"CUDA graphs|TensorRT"):
            Runner(artifact, options)
    with pytest.raises(DeviceUnavailableError, match="CUDA graphs and TensorRT"):
        RunnerOptions(device="cpu", cuda_graphs=True, tensorrt=tmp_path)


def test_provider_options_match_their_documentation(tmp_path: Path) -> None:
    options = RunnerOptions(device="cuda:1", cuda_memory_limit=10**9, cuda_graphs=True, tensorrt=tmp_path / "engines")
    assert _cuda_options(options) == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": "1000000000",
        "enable_cuda_graph": "1",
    }
    assert _tensorrt_options(options, tmp_path / "engines")["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert (tmp_path / "engines").is_dir()
