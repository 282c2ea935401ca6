"""The model on CUDA gives the answers of the CPU, in each way of running it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import DeviceUnavailableError
from model_store.image import CROP
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner

pytestmark = pytest.mark.gpu
CPU, CUDA = RunnerOptions(device="cpu", arithmetic="f32"), RunnerOptions(device="cuda")
Show = Callable[[str], None]


def pictures(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth random pictures, like photographs rather than noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 14, 14, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(CROP // 14, axis=1).repeat(CROP // 14, axis=2))


def agreement(found: Outputs, expected: Outputs) -> tuple[float, float]:
    """Return the least cosine of the fc7 vectors, and the share of pictures with the same best class."""
    lengths = np.linalg.norm(found.fc7, axis=1) * np.linalg.norm(expected.fc7, axis=1)
    cosines = np.einsum("ij,ij->i", found.fc7, expected.fc7) / np.maximum(lengths, 1e-12)
    same = found.probabilities.argmax(axis=1) == expected.probabilities.argmax(axis=1)
    return float(cosines.min()), float(same.mean())


def seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Return the median time of a call, after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def check(artifact: Artifact, options: RunnerOptions) -> tuple[Runner, str]:
    """Compare a runner with the CPU for several batch sizes; return it, and the agreement in words."""
    runner, reference = Runner(artifact, options), Runner(artifact, CPU)
    worst_cosine, worst_share = 1.0, 1.0
    for n in (1, 3, 12, 64, 3, 1):  # repeated sizes use their buffers and graphs again
        pixels = pictures(n, seed=n)
        cosine, share = agreement(runner.run(pixels), reference.run(pixels))
        worst_cosine, worst_share = min(worst_cosine, cosine), min(worst_share, share)
    assert runner.device == "cuda:0"
    assert worst_cosine >= 0.9999
    assert worst_share >= 0.95
    return runner, f"fc7 cosine >= {worst_cosine:.6f}, same best class {worst_share:.1%}"


def test_parity(artifact: Artifact, figure: Show) -> None:
    """Runner: CUDA gives the CPU's answers"""
    figure(check(artifact, CUDA)[1])


def test_io_binding(artifact: Artifact, figure: Show) -> None:
    """Runner: IO binding gives the same outputs"""
    bound, plain = Runner(artifact, CUDA), Runner(artifact, RunnerOptions(device="cuda", bind=False))
    for n in (1, 12, 1):
        pixels = pictures(n, seed=n)
        np.testing.assert_allclose(bound.run(pixels).fc7, plain.run(pixels).fc7, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(bound.run(pixels).probabilities, plain.run(pixels).probabilities, atol=1e-3)
    one = pictures(1)
    times = [1000 * seconds(lambda runner=runner: runner.run(one)) for runner in (bound, plain)]  # type: ignore[misc]
    figure(f"{times[0]:.2f} ms for one image, {times[1]:.2f} without")


def test_cuda_graphs(artifact: Artifact, figure: Show) -> None:
    """Runner: CUDA graphs give the CPU's answers"""
    runner, text = check(artifact, RunnerOptions(device="cuda", cuda_graphs=True))
    one, plain = pictures(1), Runner(artifact, CUDA)
    times = [1000 * seconds(lambda each=each: each.run(one)) for each in (runner, plain)]  # type: ignore[misc]
    figure(f"{text}; {times[0]:.2f} ms for one image, {times[1]:.2f} without")


def test_tensorrt(artifact: Artifact, figure: Show, tmp_path: Path) -> None:
    """Runner: TensorRT gives the CPU's answers"""
    try:
        runner, text = check(artifact, RunnerOptions(device="cuda", tensorrt=tmp_path / "tensorrt"))
    except DeviceUnavailableError as error:
        pytest.skip(f"TensorRT cannot be used: {error.reason}")
    assert list((tmp_path / "tensorrt").iterdir()), "the engine is cached"
    one = pictures(1)
    figure(f"{text}; {1000 * seconds(lambda: runner.run(one)):.2f} ms for one image")


def test_memory_limit(artifact: Artifact, figure: Show) -> None:
    """Runner: FC7_CUDA_MEMORY_MB limits the memory"""
    runner = Runner(artifact, RunnerOptions(device="cuda", cuda_memory_limit=2_000_000_000))
    pixels = pictures(12)
    cosine, _ = agreement(runner.run(pixels), Runner(artifact, CPU).run(pixels))
    assert cosine >= 0.9999
    figure("works with 2,000 MB")


def test_throughput(artifact: Artifact, figure: Show) -> None:
    """Runner: images/s in batches, beside the CPU"""
    rates = {}
    for name, options, sizes in (("CUDA", CUDA, (12, 64, 256)), ("CPU", RunnerOptions(device="cpu"), (12,))):
        runner = Runner(artifact, options)
        for size in sizes:
            pixels = pictures(size)
            rates[f"{name} {size}"] = size / seconds(lambda: runner.run(pixels), 10)  # noqa: B023 - called at once
    assert rates["CUDA 64"] > rates["CPU 12"]
    figure(", ".join(f"{name}: {rate:,.0f}" for name, rate in rates.items()))
