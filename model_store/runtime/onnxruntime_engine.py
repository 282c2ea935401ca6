"""ONNX Runtime on CUDA, TensorRT or any CPU: sessions, execution providers and their options.

Guarantees: a session is created from bytes in memory that match the manifest. Changing or deleting the files later has
no effect. A requested CUDA device is used or refused, never silently replaced by the CPU.
References: ONNX Runtime's documentation of session options and of the CUDA and TensorRT execution providers.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import DeviceUnavailableError, MissingExtraError, RunnerError
from model_store.manifest import graph_files
from model_store.runtime.engine import Ports
from model_store.runtime.io_binding import BoundSession
from model_store.runtime.options import RunnerOptions

if TYPE_CHECKING:
    import onnxruntime

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
CPU: Final = "CPUExecutionProvider"
_SPIN_US: Final = "200"
_TYPES: Final = {"tensor(uint8)": "u8", "tensor(float)": "f32"}


class OnnxRuntimeEngine:
    """A session on CUDA, TensorRT or any CPU. `Engine` describes its attributes and methods."""

    name = "onnxruntime"
    streams = 1

    def __init__(self, artifact: Artifact, options: RunnerOptions) -> None:
        """Load `artifact`. Raises ArtifactCorruptError, DeviceUnavailableError, RunnerError, MissingExtraError."""
        self._session, self.provider = open_session(artifact, graph_files(artifact.precision), options)
        self.device = "cpu" if self.provider == CPU else f"cuda:{options.cuda_device}"
        self.arithmetic = "f32" if artifact.precision == "fp32" else artifact.precision
        self.inputs, self.outputs = _ports(self._session.get_inputs()), _ports(self._session.get_outputs())
        self._bound = _bind_io(self._session, self.provider, options)
        # Runs take turns: each uses all threads, and those with IO binding share their buffers.
        self._running = threading.Lock()

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Sequence[NDArray[np.float32]]:  # noqa: ARG002 - one stream
        """Return probabilities and fc7, as new arrays, of uint8 [n,224,224,3], C-contiguous. Uses all threads."""
        with self._running:
            if self._bound is not None:
                return self._bound.run(pixels)
            outputs: list[NDArray[np.float32]] = self._session.run(["probabilities", "fc7"], {"pixels": pixels})
            return outputs


def _bind_io(session: Any, provider: str, options: RunnerOptions) -> BoundSession | None:
    """Return the session with IO binding, or None if IO binding is not used."""
    import onnxruntime  # noqa: PLC0415 - an optional dependency

    if not (provider != CPU if options.bind is None else options.bind):
        return None
    device = "cpu" if provider == CPU else "cuda"
    return BoundSession(onnxruntime, session, device, options.cuda_device or 0, graphs=options.cuda_graphs)


def has_cuda() -> bool:
    """Return whether the installed ONNX Runtime has a CUDA provider. There may still be no such device."""
    try:
        import onnxruntime  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return False
    return CUDA in onnxruntime.get_available_providers()


def open_session(
    artifact: Artifact, names: Sequence[str], options: RunnerOptions, cpu_config: Mapping[str, str] | None = None
) -> tuple[onnxruntime.InferenceSession, str]:
    """Load a graph of a version. Returns the session and the provider in use.

    names: the files of the version, the graph first, then its weights. cpu_config: further entries of the session's
    configuration on the CPU. Raises ArtifactCorruptError, DeviceUnavailableError, RunnerError, MissingExtraError.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - an optional dependency
    except ImportError as exc:
        raise MissingExtraError("onnxruntime", "cpu|gpu") from exc
    files = {name: artifact.read(name) for name in names}
    available = tuple(onnxruntime.get_available_providers())
    reason = "the installed ONNX Runtime is the CPU package and has no CUDA provider"
    if options.cuda_device is not None and CUDA in available:
        with redirect_stdout(io.StringIO()) as printed:  # it prints the libraries that it does not find
            onnxruntime.preload_dlls()
        wanted = CUDA if options.tensorrt is None else TENSORRT
        providers: list[Any] = [(CUDA, _cuda_options(options)), CPU]
        if options.tensorrt is not None:
            providers.insert(0, (TENSORRT, _tensorrt_options(options, options.tensorrt)))
        try:
            if wanted not in available:
                raise RunnerError(artifact.id, f"ONNX Runtime has no {wanted}")
            session = _session(artifact, names, files, options.threads, providers)
        except RunnerError as exc:
            reason = exc.reason
        else:
            if wanted in session.get_providers():
                return session, wanted
            missing = printed.getvalue().partition("\n")[0]
            reason = missing or "the CUDA libraries are loaded, but no such device was found"
    if options.device not in ("auto", "cpu") or options.cuda_only:
        raise DeviceUnavailableError(options.cuda_only or options.device, available, reason)
    if options.device == "auto" and CUDA in available:
        structlog.get_logger(__name__).warning("CUDA cannot be used, running on the CPU", reason=reason)
    return _session(artifact, names, files, options.threads, [CPU], config=cpu_config), CPU


def _session(
    artifact: Artifact,
    names: Sequence[str],
    files: dict[str, bytes],
    threads: int,
    providers: list[Any],
    *,
    config: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """Create a session. The first of `names` is the graph, the others are its weights; `files` has their bytes."""
    import onnxruntime  # noqa: PLC0415 - an optional dependency

    graph, *weights = names
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only; they are raised as exceptions too
    # Batch sizes vary, and ONNX Runtime would keep a memory pattern for each.
    settings.enable_mem_pattern = False
    settings.intra_op_num_threads = threads
    # Given a path, ONNX Runtime maps the weights into memory. Editing the file would then change results, and cutting
    # it would end the process with SIGBUS.
    settings.add_external_initializers_from_files_in_memory(
        [PurePosixPath(name).name for name in weights],  # the graph refers to them without their folder
        [files[name] for name in weights],
        [len(files[name]) for name in weights],
    )
    # Threads that wait for each other spin first. The default duration takes the cores away from decoding and HTTP.
    # Without spinning, each of the 30 operators waits for threads to wake up. 0.2 ms was the best value measured.
    settings.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    for key, value in (config or {}).items():
        settings.add_session_config_entry(key, value)
    try:
        # The fallback would silently continue on the CPU.
        return onnxruntime.InferenceSession(files[graph], settings, providers=providers, enable_fallback=0)
    except Exception as exc:
        raise RunnerError(artifact.id, f"{artifact.path / graph} cannot be loaded: {exc}") from exc


def _cuda_options(options: RunnerOptions) -> dict[str, str]:
    # By default the arena doubles each time it grows, and every new batch size starts an exhaustive algorithm search.
    settings = {
        "device_id": str(options.cuda_device),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if options.cuda_memory_limit is not None:
        settings["gpu_mem_limit"] = str(options.cuda_memory_limit)
    if options.cuda_graphs:
        settings["enable_cuda_graph"] = "1"
    return settings


def _tensorrt_options(options: RunnerOptions, cache: Path) -> dict[str, str]:
    cache.mkdir(parents=True, exist_ok=True)
    settings = {
        "device_id": str(options.cuda_device),
        # Building an engine takes minutes, so it is cached across restarts.
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
    }
    if options.cuda_graphs:
        settings["trt_cuda_graph_enable"] = "True"
    return settings


def _ports(nodes: Sequence[Any]) -> Ports:
    return {node.name: (_TYPES.get(node.type, node.type), node.shape[1:]) for node in nodes}
