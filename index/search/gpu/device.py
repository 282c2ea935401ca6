"""The CUDA device that searches vectors with FAISS.

Guarantees: a device that was asked for and cannot be used is refused, never silently replaced by the CPU. One thread at
a time uses the device, because FAISS's GPU resources are not thread-safe. All indexes together stay below the memory
limit.
Out of scope: what the indexes contain (see rows.py), and the memory of the model on the same device.
References: FAISS's documentation "Faiss on the GPU".
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final

import faiss

from model_store.errors import DeviceUnavailableError

MAX_FOUND: Final = 2048  # FAISS selects at most that many neighbors on a GPU
# Temporary memory that FAISS reserves on the device. A search needs 64 MB for 32 queries in the largest block.
_TEMPORARY_BYTES: Final = 128 << 20
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_faiss: Any = faiss


class SearchDevice:
    """A device for vectors. Every use of an index of the device happens while `lock` is held."""

    def __init__(self, name: str, make_index: Callable[[int], Any], memory: int) -> None:
        """name: such as "cuda:0". make_index: returns an empty FAISS index with float16 rows of that many values.

        memory: limit of all indexes together, in bytes.
        """
        self.name, self.memory = name, memory
        self.lock = threading.Lock()
        self.used = 0
        """Bytes of all rows on the device."""
        self._make_index = make_index

    def index(self, dimensions: int) -> Any:
        """Return an empty FAISS index with the Euclidean metric and float16 rows on the device."""
        return self._make_index(dimensions)

    def has_room(self, rows: int, growing: int) -> bool:
        """Return whether `rows` more bytes fit, if they are added to an index of `growing` bytes.

        FAISS copies an index to new memory to enlarge it, so both copies must fit.
        """
        return self.used + rows + growing <= self.memory


def open_device(requested: str, memory: int) -> SearchDevice | None:
    """Open the requested device: "auto", "cpu", "cuda" or "cuda:N". Returns None for the CPU. memory: limit in bytes.

    "auto" is the first CUDA device, or the CPU if FAISS cannot use one. Raises DeviceUnavailableError if a CUDA device
    was requested and FAISS cannot use it.
    """
    if requested == "cpu":
        return None
    number = int(requested.partition(":")[2] or 0)
    reason = _problem(number)
    if reason is None:
        return SearchDevice(f"cuda:{number}", _maker(number), memory - _TEMPORARY_BYTES)
    if requested != "auto":
        raise DeviceUnavailableError(requested, (), f"vector search: {reason}")
    return None


def _problem(number: int) -> str | None:
    """Return why FAISS cannot use this CUDA device, or None."""
    if not hasattr(_faiss, "StandardGpuResources"):
        return "the installed FAISS is the package faiss-cpu, which cannot use a GPU"
    reason = driver_problem()
    if reason is not None:
        return reason
    count = _faiss.get_num_gpus()
    if number >= count:
        return f"FAISS finds {count or 'no'} CUDA device{'' if count == 1 else 's'}"
    return None


def driver_problem(library: str = "libcuda.so.1") -> str | None:
    """Return why NVIDIA's driver does not work, or None. There may still be no device."""
    # FAISS ends the process if the driver reports an error, such as one that does not match the kernel's module.
    try:
        code = ctypes.CDLL(library).cuInit(0)
    except OSError:
        return f"NVIDIA's driver ({library}) is not installed"
    return None if code in (0, _NO_DEVICE) else f"NVIDIA's driver does not work (CUDA error {code})"


def _maker(number: int) -> Callable[[int], Any]:
    """Return a function that creates indexes on a CUDA device, which share temporary memory."""
    resources = _faiss.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    resources.setPinnedMemory(0)  # only used for more than 256 MB of queries or rows in one call

    def make(dimensions: int) -> Any:
        config = _faiss.GpuIndexFlatConfig()
        config.device = number
        config.useFloat16 = True
        config.use_cuvs = False
        return _faiss.GpuIndexFlat(resources, dimensions, _faiss.METRIC_L2, config)

    return make
