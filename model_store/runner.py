"""Run a version of a model with ONNX Runtime: pixels in, probabilities and fc7 out, in one pass.

Promises: what is loaded is what the manifest describes, and lives in memory alone: editing or removing the files later
changes nothing; the graph has the served contract before the first request; a CUDA device that
was asked for is used or refused, never silently replaced; every failure of ONNX Runtime is a `RunnerError`.
Does not: decode images, batch, average views, retry. Calls from several threads are safe.
Source: ONNX Runtime's documentation of the CUDA execution provider and of session options.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.artifact import FEATURES, Artifact, graph_files
from model_store.binding import BoundSession
from model_store.cores import usable_cores
from model_store.errors import DeviceUnavailableError, MissingExtraError, RunnerError, ShapeError
from model_store.image import CROP

if TYPE_CHECKING:
    import onnxruntime

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
CPU: Final = "CPUExecutionProvider"
_SPIN_US: Final = "200"


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


class Outputs(NamedTuple):
    """What the network says of n inputs: probabilities float32 [n,K], and fc7 float32 [n,4096] after ReLU."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]


class Runner:
    """A loaded version on one device. `device` is "cpu" or "cuda:N", `provider` ONNX Runtime's name for it.

    `streams`: how many calls of `run_beside` make best use of the device at a time.
    """

    def __init__(self, artifact: Artifact, options: RunnerOptions | None = None) -> None:
        """Load `artifact`, after comparing its files with the manifest if nobody did yet.

        Raises ArtifactCorruptError, PrecisionNotFoundError, DeviceUnavailableError when CUDA was asked for and cannot
        be used, RunnerError for a graph that cannot be loaded or has another contract, MissingExtraError without ONNX
        Runtime.
        """
        self.options = options or RunnerOptions()
        if self.options.precision is not None:
            artifact = artifact.at(self.options.precision)
        if not artifact.verified:
            artifact.verify()
        self.artifact = artifact
        self.classes = len(artifact.manifest.classes)
        self._session: onnxruntime.InferenceSession | None
        (self._session, *shared), self.provider = _load(artifact, self.options)
        self._shared: onnxruntime.InferenceSession | None = shared[0] if shared else None
        self.streams = self.options.streams if shared else 1
        self.device = "cpu" if self.provider == CPU else f"cuda:{self.options.cuda_device}"
        for session in (self._session, *shared):
            self._check_contract(session)
        self._bound = _bind(self._session, self.provider, self.options)
        self._running = threading.Lock()  # the bound buffers are shared
        structlog.get_logger(__name__).info(
            "model loaded",
            model=artifact.embedder,
            device=self.device,
            asked=self.options.device,
            provider=self.provider,
            streams=self.streams,
        )

    def _check_contract(self, session: onnxruntime.InferenceSession) -> None:
        inputs = {node.name: (node.type, node.shape[1:]) for node in session.get_inputs()}
        outputs = {node.name: (node.type, node.shape[1:]) for node in session.get_outputs()}
        wanted_inputs = {"pixels": ("tensor(uint8)", [CROP, CROP, 3])}
        wanted_outputs = {
            "probabilities": ("tensor(float)", [self.classes]),
            "fc7": ("tensor(float)", [FEATURES]),
        }
        if inputs != wanted_inputs:
            raise RunnerError(self.artifact.id, f"the graph takes {inputs}, but must take {wanted_inputs}")
        for name, wanted in wanted_outputs.items():
            if outputs.get(name) != wanted:
                raise RunnerError(self.artifact.id, f"the graph's output {name} is {outputs.get(name)}, not {wanted}")

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the network's answers to pixels, uint8 [n,224,224,3], RGB, n >= 1: one row for each.

        Raises ShapeError for other arrays, RunnerError when ONNX Runtime fails or the runner is closed.
        """
        return self._run(pixels, self._session)

    def run_beside(self, pixels: NDArray[np.uint8]) -> Outputs:
        """As `run`, but on one stream's share of the threads: `streams` such runs at a time take less time together.

        Threads of one run wait for each other at each of the graph's steps; those of two do not. And it runs the graph
        for batches, where the version has one: its answers are those of `run` but for rounding.
        """
        return self._run(pixels, self._shared or self._session)

    def _run(self, pixels: NDArray[np.uint8], session: onnxruntime.InferenceSession | None) -> Outputs:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (CROP, CROP, 3) or not len(pixels):
            raise ShapeError("pixels", f"uint8 [n,{CROP},{CROP},3], n >= 1", f"{pixels.dtype} {list(pixels.shape)}")
        if session is None:
            raise RunnerError(self.artifact.id, "it is closed")
        pixels = np.ascontiguousarray(pixels)
        bound = self._bound if session is self._session else None
        try:
            if bound is None:
                return Outputs(*session.run(["probabilities", "fc7"], {"pixels": pixels}))
            with self._running:
                return Outputs(*bound.run(pixels))
        except Exception as exc:  # the seam: each of ONNX Runtime's status codes is an exception class of its own
            raise RunnerError(self.artifact.id, str(exc)) from exc

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Run once for each batch size, so that memory and algorithms are chosen before the first request.

        Of several images, where there are streams, on all of them at once.
        """
        for size in batch_sizes:
            pixels = np.zeros((size, CROP, CROP, 3), np.uint8)
            if size == 1 or self._shared is None:
                self.run(pixels)
            else:
                with ThreadPoolExecutor(self.streams) as pool:
                    list(pool.map(self.run_beside, [pixels] * self.streams))

    def close(self) -> None:
        """Free the sessions; a later `run` raises RunnerError. A run that is under way ends first."""
        self._session = self._shared = self._bound = None


def _bind(session: Any, provider: str, options: RunnerOptions) -> BoundSession | None:
    import onnxruntime  # noqa: PLC0415 - as in _load, which came first

    if not (provider != CPU if options.bind is None else options.bind):
        return None
    device = "cpu" if provider == CPU else "cuda"
    return BoundSession(onnxruntime, session, device, options.cuda_device or 0, graphs=options.cuda_graphs)


def _load(artifact: Artifact, options: RunnerOptions) -> tuple[list[onnxruntime.InferenceSession], str]:
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


def average_views(values: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Return the mean over each picture's n views: float32 [b*n, ...] -> [b, ...], rows as `image.views` orders them.

    Raises ShapeError unless the number of rows is a multiple of n. Source: the paper, section 4.1.
    """
    if n < 1 or values.ndim < 1 or len(values) % n:
        raise ShapeError("values", f"rows in multiples of {n}", f"{values.dtype} {list(values.shape)}")
    if n == 1:
        return values
    mean: NDArray[np.float32] = values.reshape(-1, n, *values.shape[1:]).mean(axis=1, dtype=np.float32)
    return mean


def top_k(probabilities: NDArray[np.float32], k: int = 5) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` most probable classes of each row, most probable first.

    probabilities: float32 [n,K], views already averaged. Returns (indices, values), int64 and float32, both [n,k].
    Equal values keep the order of their class indices. Raises ShapeError unless `probabilities` is two-dimensional,
    ValueError unless 1 <= k <= K. Source: the paper, section 2 (top-5).
    """
    if probabilities.ndim != 2:
        raise ShapeError("probabilities", "float32 [n,K]", f"{probabilities.dtype} {list(probabilities.shape)}")
    if not 1 <= k <= probabilities.shape[1]:
        raise ValueError(f"k must be from 1 to {probabilities.shape[1]} classes, but is {k}")
    # Stable: classes far from the top underflow to exactly 0 and tie, and every replica must order them alike.
    indices = np.argsort(-probabilities, axis=1, kind="stable")[:, :k].astype(np.int64, copy=False)
    return indices, probabilities[np.arange(len(indices))[:, np.newaxis], indices]
