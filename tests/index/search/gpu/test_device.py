"""A GPU that was asked for and cannot be used is refused with the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import faiss
import pytest

from index.search.gpu.device import SearchDevice, driver_problem, open_device
from model_store.errors import DeviceUnavailableError
from tests.index.helpers import open_index
from tests.index.search.gpu.helpers import float16_index

_faiss: Any = faiss
with_faiss_cpu = pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="faiss-gpu is installed")
without_gpu = pytest.mark.skipif(
    hasattr(faiss, "get_num_gpus") and _faiss.get_num_gpus() > 0, reason="this machine has a GPU"
)


def test_the_cpu_needs_no_device() -> None:
    assert open_device("cpu", 1 << 30) is None


@without_gpu
def test_auto_searches_on_the_cpu_without_a_gpu() -> None:
    assert open_device("auto", 1 << 30) is None


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path: Path, device: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=rf"The device {device} was requested.*vector search:.*FC7_DEVICE"):
        open_index(tmp_path, device=device)
    assert list(tmp_path.iterdir()) == []


@with_faiss_cpu
def test_the_message_names_the_wrong_package() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"the package faiss-cpu, which cannot use a GPU.*fc7\[gpu\]"):
        open_device("cuda", 1 << 30)


def test_memory_for_enlarging_an_index_is_part_of_the_limit() -> None:
    device = SearchDevice("cuda:0", float16_index, 1000)
    device.used = 300
    assert device.has_room(400, 300)
    assert not device.has_room(401, 300)


def test_a_missing_driver_is_named() -> None:
    assert driver_problem("libcuda-missing.so.1") == "NVIDIA's driver (libcuda-missing.so.1) is not installed"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler builds a driver that fails")
@pytest.mark.parametrize(
    ("code", "problem"),
    [(0, None), (100, None), (803, "NVIDIA's driver does not work (CUDA error 803)")],
)
def test_a_driver_that_fails_is_named_instead_of_ending_the_process(
    tmp_path: Path, code: int, problem: str | None
) -> None:
    library = tmp_path / "libcuda.so.1"
    source = f"int cuInit(unsigned flags) {{ return {code}; }}"
    subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-o", library, "-"], input=source, text=True, check=True)
    assert driver_problem(str(library)) == problem
