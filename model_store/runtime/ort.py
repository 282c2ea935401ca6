"""ONNX Runtime: sessions, execution providers and their options."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from model_store.artifact import Artifact, graph_files
from model_store.errors import DeviceUnavailableError, MissingExtraError, RunnerError
from model_store.runtime.io_binding import BoundSession
from model_store.runtime.options import RunnerOptions

if TYPE_CHECKING:
    import onnxruntime


CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
CPU: Final = "CPUExecutionProvider"
_SPIN_US: Final = "200"


def bind_io(session: Any, provider: str, options: RunnerOptions) -> BoundSession | None:
    """Return the session with its inputs and outputs bound to device memory, or None where that is not used."""
    import onnxruntime  # noqa: PLC0415 - as in load_sessions, which came first

    if not (provider != CPU if options.bind is None else options.bind):
        return None
    device = "cpu" if provider == CPU else "cuda"
    return BoundSession(onnxruntime, session, device, options.cuda_device or 0, graphs=options.cuda_graphs)


def load_sessions(artifact: Artifact, options: RunnerOptions) -> tuple[list[onnxruntime.InferenceSession], str]:
    """Return a session, one more for runs side by side where there are to be any, and the provider that is used."""
    try:
        import onnxruntime  # noqa: PLC0415 - an extra: only who runs a model needs it
    except ImportError as exc:
        raise MissingExtraError("onnxruntime", "cpu|gpu") from exc
    own = graph_files(artifact.precision)
    files = {name: artifact.read(name) for name in own}
    available = tuple(onnxruntime.get_available_providers())
    reason = "ONNX Runtime has no CUDA provider: it is the package for the CPU"
    if options.cuda_device is not None and CUDA in available:
        with redirect_stdout(io.StringIO()) as said:  # it prints what it did not find
            onnxruntime.preload_dlls()
        wanted = CUDA if options.tensorrt is None else TENSORRT
        providers: list[Any] = [(CUDA, _cuda_options(options)), CPU]
        if options.tensorrt is not None:
            providers.insert(0, (TENSORRT, _tensorrt_options(options, options.tensorrt)))
        try:
            if wanted not in available:
                raise RunnerError(artifact.id, f"ONNX Runtime has no {wanted}")
            session = _session(onnxruntime, artifact, _Graph.of(own, files), options.threads, providers)
        except RunnerError as exc:
            reason = exc.reason
        else:
            if wanted in session.get_providers():
                return [session], wanted
            missing = said.getvalue().partition("\n")[0]
            reason = missing or "its CUDA libraries are loaded, but the device was not found"
    if options.device not in ("auto", "cpu") or options.cuda_only:
        raise DeviceUnavailableError(options.cuda_only or options.device, available, reason)
    if options.device == "auto" and CUDA in available:
        structlog.get_logger(__name__).warning("CUDA cannot be used, running on the CPU", reason=reason)
    batches = artifact.batches or own
    graphs: list[tuple[tuple[str, ...], int]] = [(batches if options.batches else own, options.threads)]
    if options.streams > 1:
        graphs += [(batches, max(1, options.threads // options.streams))]
    files |= {name: artifact.read(name) for names, _ in graphs for name in names if name not in files}
    with ThreadPoolExecutor(len(graphs)) as pool:  # each takes most of a second to arrange its weights
        made = [
            pool.submit(_session, onnxruntime, artifact, _Graph.of(names, files), threads, [CPU])
            for names, threads in graphs
        ]
        return [session.result() for session in made], CPU


class _Graph(NamedTuple):
    """A graph's name and bytes, and those of its weights by their places beside it, which is how it knows them."""

    name: str
    content: bytes
    weights: dict[str, bytes]

    @classmethod
    def of(cls, names: tuple[str, ...], files: dict[str, bytes]) -> _Graph:
        """Take the graph, the first of `names`, and its weights, the others, from `files`."""
        return cls(names[0], files[names[0]], {PurePosixPath(name).name: files[name] for name in names[1:]})


def _session(
    ort: Any, artifact: Artifact, graph: _Graph, threads: int, providers: list[Any]
) -> onnxruntime.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors: they come back as exceptions, and warnings are for who made the graph
    # Batches vary in size, and a pattern is kept for each size.
    settings.enable_mem_pattern = False
    settings.intra_op_num_threads = threads
    # Given a path, ONNX Runtime maps the weights: who edits the file then changes the answers, who cuts it ends the
    # process with SIGBUS.
    places, weights = list(graph.weights), list(graph.weights.values())
    settings.add_external_initializers_from_files_in_memory(places, weights, [len(each) for each in weights])
    # Threads that wait for one another spin first. As long as by default, that takes the cores from decoding and HTTP;
    # not at all, and each of the graph's 30 steps pays for waking up. A fifth of a millisecond is the best of both.
    settings.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    try:
        # Without the fallback: it would go to the CPU with a print.
        return ort.InferenceSession(graph.content, settings, providers=providers, enable_fallback=0)
    except Exception as exc:
        raise RunnerError(artifact.id, f"{artifact.path / graph.name} cannot be loaded: {exc}") from exc


def _cuda_options(options: RunnerOptions) -> dict[str, str]:
    # The default doubles the arena each time, and searches algorithms exhaustively for every new batch size.
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
        # An engine takes minutes to build: once a machine, not once a start.
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
    }
    if options.cuda_graphs:
        settings["trt_cuda_graph_enable"] = "True"
    return settings
