"""Options of a Runner: device, threads, precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.cores import usable_cores
from model_store.errors import DeviceUnavailableError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a version is run.

    device: "auto" (CUDA where it works, else the CPU), "cpu", "cuda" (the first device) or "cuda:N".
    intra_op_threads: threads of one run on the CPU; None takes the cores that this process may use.
    streams: how many runs share those threads side by side on the CPU (`Runner.run_beside`), with a second copy of the
    weights; on CUDA there is always one.
    batches: `Runner.run` is for batches, as indexing and evaluation have them: on the CPU it has the graph for them,
    which takes longer for a single image. `Runner.run_beside` always has it.
    cuda_memory_limit: bytes that the arena on the device may take; None sets no limit.
    bind: keep inputs and outputs at fixed places on the device; None does so on CUDA.
    cuda_graphs: replay each batch size as one CUDA graph, captured at its first run. tensorrt: run with TensorRT, whose
    engines are kept in this folder; None runs without. Both are refused where they cannot be had.
    precision: which of the version's graphs; None takes the one that the artifact was opened in.
    """

    device: str = "auto"
    intra_op_threads: int | None = None
    streams: int = 1
    batches: bool = False
    cuda_memory_limit: int | None = None
    bind: bool | None = None
    cuda_graphs: bool = False
    tensorrt: Path | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        kind, colon, number = self.device.partition(":")
        if self.device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and colon and number.isdecimal()):
            raise DeviceUnavailableError(self.device, (), 'a device is "auto", "cpu", "cuda" or "cuda:N"')
        if self.intra_op_threads is not None and self.intra_op_threads < 1:
            raise ValueError(f"intra_op_threads must be at least 1, but is {self.intra_op_threads}")
        if self.streams < 1:
            raise ValueError(f"streams must be at least 1, but is {self.streams}")
        if self.cuda_only and self.device == "cpu":
            raise DeviceUnavailableError(self.cuda_only, (), "the device is cpu, and this is of CUDA alone")

    @property
    def cuda_only(self) -> str:
        """What was asked for that only CUDA has, in words; empty for nothing."""
        return " and ".join(["CUDA graphs"] * self.cuda_graphs + ["TensorRT"] * (self.tensorrt is not None))

    @property
    def threads(self) -> int:
        """Threads of one run that has the CPU to itself."""
        return self.intra_op_threads or usable_cores()

    @property
    def cuda_device(self) -> int | None:
        """Number of the CUDA device to try; None for the CPU alone."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2] or 0)
