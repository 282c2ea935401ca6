"""The hardware and software that a run uses: device, bfloat16, random number generators, memory, versions.

Guarantees: importing has no effect. `keep_freed_memory` and `limit_threads` change the whole process, so only entry
points call them.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from model_store.cores import usable_cores
from model_store.errors import DeviceUnavailableError, TrainingError
from model_store.training.recipe import Precision

_M_TRIM_THRESHOLD: Final = -1  # glibc's malloc.h
_M_MMAP_MAX: Final = -4


def training_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device to train on. `name` is "auto" (CUDA if available), "cpu", "cuda" or "cuda:1".

    local_rank: the number of this process on its machine. With CUDA, it selects the device.
    Raises DeviceUnavailableError.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not available):
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()):
        raise DeviceUnavailableError(name, (), "valid values are auto, cpu, cuda and cuda:NUMBER")
    index = int(number or 0) if local_rank is None else local_rank
    if index >= available:
        raise DeviceUnavailableError(name, (), f"torch {torch.__version__} finds {available} CUDA devices")
    return torch.device("cuda", index)


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 if it was chosen or, with "auto", if the hardware supports it. None means float32."""
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if precision == "auto":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
        return torch.bfloat16 if native else None
    return torch.bfloat16 if precision == "bfloat16" else None


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's random number generators that a run on `device` uses, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_rng_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the states that `rng_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def preserved_rng(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's random number generators after the block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system. Returns whether this worked.

    Otherwise, activations of tens of megabytes are mapped and zeroed again in every step (82 instead of 115 images/s).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def limit_threads() -> None:
    """Let torch use no more threads than there are cores for this process; OMP_NUM_THREADS can set fewer."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


@contextmanager
def out_of_memory_in_words() -> Iterator[None]:
    """Turn an allocation that fails in the block into a TrainingError that says what to change."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:  # torch has no class of its own for the main memory
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: Exception) -> TrainingError:
    reason = (str(error).splitlines() or ["memory could not be allocated"])[0][:200]
    return TrainingError(
        f"There is not enough memory for training ({reason}). Use smaller batches (--set batch_size=16) "
        "or fewer images in memory (--memory-budget 0), or raise the memory limit."
    )


def environment_versions() -> dict[str, str]:
    """Return what results depend on: versions, processor, number of threads, and the git revision of fc7."""
    capabilities = torch.cpu.get_capabilities()
    try:
        fc7 = metadata.version("fc7")
    except metadata.PackageNotFoundError:
        fc7 = "not installed"
    return {
        "fc7": fc7,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": str(capabilities.get("cpu_name", platform.machine())),
        "threads": str(torch.get_num_threads()),
    }


def _revision() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 (fixed command)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
