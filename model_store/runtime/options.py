"""Options of a Runner: device, engine, arithmetic, threads, precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_store.cores import usable_cores
from model_store.errors import DeviceUnavailableError

EngineName = Literal["auto", "onnxruntime", "openvino"]
Arithmetic = Literal["auto", "f32", "bf16"]


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Options for running a version.

    device: "auto" (CUDA if it works, otherwise the CPU), "cpu", "cuda" (the first device) or "cuda:N".
    engine: what runs the graph. "auto" takes OpenVINO on x86 CPUs where it is installed, otherwise ONNX Runtime. CUDA
    always uses ONNX Runtime.
    arithmetic: of the float layers in OpenVINO. "auto" takes bf16 if the CPU computes it natively and the version was
    measured to agree with f32 (`bf16_obstacle`), otherwise f32. "bf16" forces it, for that measurement.
    intra_op_threads: threads of one run on the CPU; None for the cores that this process may use.
    cuda_memory_limit: limit of the CUDA memory arena in bytes; None for no limit.
    bind: keep inputs and outputs in fixed device buffers (IO binding) in ONNX Runtime; None for only on CUDA.
    cuda_graphs: capture a CUDA graph for each batch size at its first run. tensorrt: run with TensorRT and cache its
    engines in this folder. Both raise DeviceUnavailableError where they are not available.
    precision: the precision to run in; None for the one that the artifact was opened in.
    """

    device: str = "auto"
    engine: EngineName = "auto"
    arithmetic: Arithmetic = "auto"
    intra_op_threads: int | None = None
    cuda_memory_limit: int | None = None
    bind: bool | None = None
    cuda_graphs: bool = False
    tensorrt: Path | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        kind, colon, number = self.device.partition(":")
        if self.device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and colon and number.isdecimal()):
            raise DeviceUnavailableError(self.device, (), 'the device must be "auto", "cpu", "cuda" or "cuda:N"')
        if self.intra_op_threads is not None and self.intra_op_threads < 1:
            raise ValueError(f"intra_op_threads must be at least 1, but is {self.intra_op_threads}.")
        if self.cuda_only and self.device == "cpu":
            raise DeviceUnavailableError(self.cuda_only, (), "it requires CUDA, but the device is cpu")
        if self.engine == "openvino" and (self.cuda_only or self.device.startswith("cuda")):
            reason = "FC7_ENGINE is openvino, which runs on the CPU; set it to auto"
            raise DeviceUnavailableError(self.cuda_only or self.device, (), reason)

    @property
    def cuda_only(self) -> str:
        """Names of the requested features that require CUDA, for messages; empty if there are none."""
        return " and ".join(["CUDA graphs"] * self.cuda_graphs + ["TensorRT"] * (self.tensorrt is not None))

    @property
    def threads(self) -> int:
        """Threads of a run that uses all cores."""
        return self.intra_op_threads or usable_cores()

    @property
    def cuda_device(self) -> int | None:
        """Number of the CUDA device to try, or None for the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2] or 0)
