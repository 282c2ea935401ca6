"""OpenVINO on x86 CPUs: bf16 and int8 with instructions that ONNX Runtime does not use, and faster f32.

A run takes place on one stream, in the thread that calls it. With OpenVINO's own streams, it would take place in a
thread of OpenVINO: the kernel often leaves that one waiting for a core while another core is idle.

The graph is cut before its first fully connected layer. The convolutions do most of the work and have 4 % of the
weights. They run image by image, which is as fast as in batches, and are compiled for each stream. The fully connected
layers have the other weights, so they are compiled only once, for any batch size, and runs take turns: the layers take
a tenth of the time of a run. For a single image on an idle server, both are compiled once more, for all cores; in f32
only the convolutions, because the layers would take 235 MB.

Guarantees: the graph that runs matches the manifest. Weights are copied into memory, so changing or deleting the files
later has no effect. Nothing is sent to OpenVINO's makers.
Out of scope: choosing the engine; how many runs take place at the same time (more than `streams` of them take turns).
References: OpenVINO's documentation of the CPU device, of model caching and of precision control; oneDNN's of the CPU
dispatcher control.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import MissingExtraError, RunnerError
from model_store.runtime.engine import Ports
from model_store.runtime.options import RunnerOptions

_MAX_STREAMS: Final = 4  # each has a copy of the convolutions
_ANY: Final = -1  # a dynamic batch size, in OpenVINO's notation
_CUT: Final = "flat"  # the node that flattens the last maps; the fully connected layers read its output
_OUTPUTS: Final = ("probabilities", "fc7")
_ROWS_AT_ONCE: Final = 8  # of a weight matrix, so that they stay in the cache
_UPPER_HALF: Final = 1  # of a 32-bit number, in the byte order of x86
# bf16 replaces f32 if they were compared on this many views of images (fewer cannot show a share of 99.9 %), the
# best class is the same for this share of them, the mean cosine of a view's two fc7 vectors is at least this, and the
# median distance of an image's two vectors is at most this share of the distance to the nearest other image.
MIN_VIEWS: Final = 1_000
_MIN_AGREEMENT: Final = 0.999
_MIN_COSINE: Final = 0.9999
_MAX_DISTANCE: Final = 0.01


class OpenVinoEngine:
    """A graph compiled for the CPU. `Engine` describes its attributes and methods."""

    name = "openvino"
    device = "cpu"
    provider = "OpenVINO"

    def __init__(self, artifact: Artifact, options: RunnerOptions) -> None:
        """Load `artifact`. Raises ArtifactCorruptError, RunnerError, MissingExtraError."""
        core = _core()
        int8 = artifact.precision == "int8"  # its float layers stay in f32, because only fp32 was compared with bf16
        bf16 = not int8 and _use_bf16(artifact, options)
        self.arithmetic = "int8" if int8 else "bf16" if bf16 else "f32"
        threads = -(-options.threads // _MAX_STREAMS)  # of a stream
        self.streams = options.threads // threads
        with artifact.on_disk() as path:
            try:
                model = core.read_model(str(path))
                self.inputs, self.outputs = _ports(model.inputs), _ports(model.outputs)
                self._compile(model, threads)
            except Exception as exc:  # OpenVINO raises RuntimeError for all errors
                raise RunnerError(artifact.id, f"{artifact.model_path} cannot be loaded: {exc}") from exc

    def _compile(self, model: Any, threads: int) -> None:
        """Compile the graph for streams of `threads` threads."""
        bf16 = self.arithmetic == "bf16"
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # decoding shares the cores
        }
        all_threads = config | {"INFERENCE_NUM_THREADS": threads * self.streams}
        twice = self.streams > 1 and self.arithmetic != "f32"
        convolutions, layers = _parts(model)
        with ThreadPoolExecutor(1) as other:  # the two parts are prepared at the same time
            firsts = other.submit(_convolutions, convolutions, [*[config] * self.streams, all_threads])
            if bf16:
                _round_weights(layers)
            last = _Stage(layers, _ANY, config)
            last_for_one = _Stage(layers, 1, all_threads) if twice else last
        *for_streams, for_one = firsts.result()
        self._idle_streams: SimpleQueue[list[_Stage]] = SimpleQueue()
        for first in for_streams:
            self._idle_streams.put([*first, last])
        self._for_one = [*for_one, last_for_one]
        self._pool = ThreadPoolExecutor(self.streams, "fc7-stream")

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Sequence[NDArray[np.float32]]:
        """Return probabilities and fc7, as new arrays, of uint8 [n,224,224,3], C-contiguous.

        all_cores: use the threads of all streams. Otherwise, use one stream.
        """
        if not all_cores or self.streams == 1:
            return self._run_on_stream(pixels)
        if len(pixels) == 1:
            return _run_stages(self._for_one, pixels)
        parts = np.array_split(pixels, min(self.streams, len(pixels)))
        results = self._pool.map(self._run_on_stream, parts)
        return [np.concatenate(column) for column in zip(*results, strict=True)]

    def _run_on_stream(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        stages = self._idle_streams.get()
        try:
            return _run_stages(stages, pixels)
        finally:
            self._idle_streams.put(stages)


class _Stage:
    """A part of the graph, compiled for one image or for `_ANY` batch size. Runs take turns."""

    def __init__(self, model: Any, size: int, config: dict[str, Any]) -> None:
        self._size = size
        self._tensor = import_openvino().Tensor
        [port] = model.inputs
        sized = model.clone()
        sized.reshape([size, *list(port.partial_shape)[1:]])
        self._request = _core().compile_model(sized, "CPU", config).create_infer_request()
        found = {name: number for number, output in enumerate(model.outputs) for name in output.names}
        self._outputs = [found[name] for name in _OUTPUTS if name in found] or [0]
        self._lock = threading.Lock()

    def run(self, rows: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the part on `rows`, and return its outputs as new arrays."""
        with self._lock:
            if self._size == _ANY:
                return self._infer(rows)
            parts = [self._infer(rows[number : number + 1]) for number in range(len(rows))]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _infer(self, rows: NDArray[Any]) -> list[NDArray[np.float32]]:
        # `infer(rows)` looks up how to convert its argument, and copies the outputs into a dict: 0.07 ms a call.
        if not (rows.flags.c_contiguous and rows.flags.writeable):
            rows = rows.copy()
        self._request.set_input_tensor(self._tensor(rows, shared_memory=True))  # does not keep `rows` alive
        self._request.infer(share_outputs=True)
        # The next run overwrites the tensors.
        return [self._request.get_output_tensor(number).data.copy() for number in self._outputs]


def _run_stages(stages: Sequence[_Stage], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    rows: list[NDArray[Any]] = [pixels]
    for stage in stages:
        rows = stage.run(rows[0])
    return rows


def _convolutions(model: Any | None, configs: Sequence[dict[str, Any]]) -> list[list[_Stage]]:
    """Compile the convolutions with each configuration. Each list is empty if there are none."""
    return [[] if model is None else [_Stage(model, 1, config)] for config in configs]


def _parts(model: Any) -> tuple[Any | None, Any]:
    """Cut the graph: return the convolutions, and the layers after them. A graph without the cut is only the latter."""
    openvino = import_openvino()
    flat = next((node for node in model.get_ordered_ops() if node.get_friendly_name() == _CUT), None)
    if flat is None:
        return None, model
    features = flat.output(0)
    cut = openvino.opset13.parameter(features.partial_shape, features.element_type)
    for reader in features.get_target_inputs():
        reader.replace_source_output(cut.output(0))
    return openvino.Model([features], model.get_parameters()), openvino.Model(model.get_results(), [cut])


def _round_weights(layers: Any) -> None:
    """Store the weight matrices in bf16, as the layers use them.

    OpenVINO keeps a model's constants beside the copies that it rearranges for the CPU. This saves 114 MB for the
    paper's net.
    """
    openvino = import_openvino()
    f32 = openvino.Type.f32
    for node in layers.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_output_element_type(0) == f32 and len(node.shape) == 2:
            readers = node.output(0).get_target_inputs()
            rounded = openvino.opset13.convert(_in_bf16(node.data), "f32")
            rounded.get_rt_info()["decompression_0"] = ""  # otherwise the conversion is done when it is compiled
            for reader in readers:
                reader.replace_source_output(rounded.output(0))


def _in_bf16(values: NDArray[np.float32]) -> Any:
    """Return a constant with `values`, finite, rounded to the nearest bf16 (ties to even)."""
    openvino = import_openvino()
    tensor = openvino.Tensor(openvino.Type.bf16, openvino.Shape(values.shape))
    bits, floats = tensor.data.view(np.uint16), values.view(np.uint32)  # NumPy has no bf16
    for start in range(0, len(floats), _ROWS_AT_ONCE):
        part = floats[start : start + _ROWS_AT_ONCE]
        rounded = part >> 16
        rounded &= 1
        rounded += part
        rounded += 0x7FFF
        bits[start : start + _ROWS_AT_ONCE] = rounded.view(np.uint16)[:, _UPPER_HALF::2]
    return openvino.op.Constant(tensor)


def _use_bf16(artifact: Artifact, options: RunnerOptions) -> bool:
    if options.arithmetic == "auto":
        return bf16_obstacle(artifact) is None and bf16_support() == "native"
    if options.arithmetic == "bf16" and bf16_support() == "none":
        raise RunnerError(artifact.id, "OpenVINO cannot compute in bf16 on this CPU")
    return options.arithmetic == "bf16"


def bf16_obstacle(artifact: Artifact) -> str | None:
    """Return why the version must not run in bf16, or None if it was measured to give the answers of f32."""
    measured = artifact.manifest.metrics.get("bf16")
    if not measured:
        return "bf16 was not compared with f32, which requires OpenVINO, AVX-512 and at least 100 validation images"
    views = measured.get("images", 0) * measured.get("views", 1)
    agreement, cosine = measured.get("top1_agreement", 0), measured.get("fc7_cosine", 0)
    distance = measured.get("fc7_distance", 1)
    if views < MIN_VIEWS:
        return f"bf16 was compared with f32 on {views:,} views of images, and not on at least {MIN_VIEWS:,}"
    if agreement < _MIN_AGREEMENT:
        return f"bf16 gives the best class of f32 for {agreement:.2%} of the images, and not for {_MIN_AGREEMENT:.1%}"
    if cosine < _MIN_COSINE:
        return f"the mean cosine of the fc7 vectors in bf16 and f32 is {cosine:.6f}, and not at least {_MIN_COSINE}"
    if distance > _MAX_DISTANCE:
        limit = f"more than {_MAX_DISTANCE:.0%} of the distance to the nearest other image"
        return f"the median distance of the fc7 vectors in bf16 and f32 is {distance:.1%}, {limit}"
    return None


def is_available() -> bool:
    """Return whether this is an x86 CPU and OpenVINO is installed."""
    return platform.machine().lower() in ("x86_64", "amd64") and find_spec("openvino") is not None


def import_openvino() -> Any:
    """Return the module `openvino` without its converter. Raises MissingExtraError."""
    try:
        from model_store.runtime.openvino_module import openvino  # noqa: PLC0415 - an optional dependency
    except ImportError as exc:
        raise MissingExtraError("openvino", "cpu") from exc
    return openvino


def _core() -> Any:
    import_openvino()
    from model_store.runtime.openvino_module import CORE  # noqa: PLC0415 - an optional dependency

    return CORE


@cache
def bf16_support() -> Literal["native", "emulated", "none"]:
    """Return whether OpenVINO computes in bf16 with the CPU's instructions for it. Takes 20 ms the first time.

    oneDNN, which computes the layers, can be told to use fewer instructions (ONEDNN_MAX_CPU_ISA, DNNL_MAX_CPU_ISA).
    OpenVINO's list of capabilities does not take this into account, so a product with a small matrix is compiled.
    Raises MissingExtraError.
    """
    openvino, core = import_openvino(), _core()
    row = openvino.opset13.parameter([1, 64], openvino.Type.f32)
    matrix = openvino.opset13.constant(np.ones((64, 64), np.float32))
    product = openvino.Model([openvino.opset13.matmul(row, matrix, False, False)], [row])
    config = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    try:
        compiled = core.compile_model(product, "CPU", config | {"ENABLE_CPU_PINNING": False})
    except RuntimeError:  # there is no kernel that can even emulate it
        return "none"
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kernels = {node["layerType"].astype(str): node["primitiveType"].astype(str) for node in nodes}
    kernel = kernels.get("FullyConnected", "")
    if not kernel.endswith("_bf16"):
        return "none"
    # In bf16, the kernels whose name starts with "brg" require instructions for it, and the others do not use them.
    native = kernel.startswith("brg") and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "native" if native else "emulated"


def _ports(ports: Sequence[Any]) -> Ports:
    return {
        port.any_name: (
            port.element_type.get_type_name(),
            [size.get_length() if size.is_static else -1 for size in list(port.partial_shape)[1:]],
        )
        for port in ports
    }
