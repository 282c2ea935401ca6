"""OpenVINO on x86 CPUs: bf16 and int8 with instructions that ONNX Runtime does not use, and faster f32.

The graph is cut before its first fully connected layer. The convolutions do most of the work and have 4 % of the
weights, so they are compiled for several fixed batch sizes, and a batch runs as a sum of these. The fully connected
layers have the other weights. In f32 they are as fast with a dynamic batch size, so they are compiled once. In bf16
they are compiled for one row and for `_MANY` rows, and a batch in between is padded.

Guarantees: the graph that runs matches the manifest. Weights are copied into memory, so changing or deleting the files
later has no effect. A run uses all threads of the runner. Nothing is sent to OpenVINO's makers.
Out of scope: choosing the engine; runs at the same time (they take turns).
References: OpenVINO's documentation of the CPU device, of model caching and of precision control.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import MissingExtraError, RunnerError
from model_store.runtime.engine import Ports
from model_store.runtime.options import RunnerOptions

_MANY: Final = 16
_CONVOLUTION_SIZES: Final = (8, 4, 2, 1)
_ANY: Final = -1  # a dynamic batch size, in OpenVINO's notation
_CUT: Final = "flat"  # the node that flattens the last maps; the fully connected layers read its output
_OUTPUTS: Final = ("probabilities", "fc7")
# bf16 replaces f32 if the best class agrees for this share of images, the mean cosine of an image's two fc7 vectors is
# at least this, and their median distance is at most this share of the distance to the nearest other image.
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
        auto = options.arithmetic == "auto" and agrees_in_bf16(artifact) and has_native_bf16()
        bf16 = not int8 and (auto or options.arithmetic == "bf16")
        self.arithmetic = "int8" if int8 else "bf16" if bf16 else "f32"
        self._lock = threading.Lock()
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": options.threads,
            "ENABLE_CPU_PINNING": False,  # decoding shares the cores
        }
        with artifact.on_disk() as path:
            try:
                model = core.read_model(str(path))
                self.inputs, self.outputs = _ports(model.inputs), _ports(model.outputs)
                convolutions, layers = _parts(model)
                if bf16:
                    _round_weights(layers)
                self._stages = [_Stage(core, layers, (_MANY, 1) if bf16 else (), config, pad=True)]
                if convolutions is not None:
                    self._stages.insert(0, _Stage(core, convolutions, _CONVOLUTION_SIZES, config, pad=False))
            except Exception as exc:  # OpenVINO raises RuntimeError for all errors
                raise RunnerError(artifact.id, f"{artifact.model_path} cannot be loaded: {exc}") from exc

    def run(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return probabilities and fc7, as new arrays, of uint8 [n,224,224,3], C-contiguous."""
        with self._lock:
            *first, last = self._stages
            rows: NDArray[Any] = pixels
            for stage in first:
                [rows] = stage.run(rows)
            return last.run(rows)


class _Stage:
    """A part of the graph, compiled for each of `sizes` (largest first), or for any batch size if there are none.

    pad: run the remaining rows in the next larger size, with rows added; else in as many smaller ones as necessary.
    """

    def __init__(self, core: Any, model: Any, sizes: Sequence[int], config: dict[str, Any], *, pad: bool) -> None:
        self._pad = pad
        self._requests = {}
        [port] = model.inputs
        for size in sizes or (_ANY,):
            fixed = model.clone()
            fixed.reshape([size, *list(port.partial_shape)[1:]])
            self._requests[size] = core.compile_model(fixed, "CPU", config).create_infer_request()
        found = {name: number for number, output in enumerate(model.outputs) for name in output.names}
        self._outputs = [found[name] for name in _OUTPUTS if name in found] or [0]

    def run(self, rows: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the part on `rows`, and return its outputs as new arrays."""
        parts = list(self._run_parts(rows))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run_parts(self, rows: NDArray[Any]) -> Iterator[list[NDArray[np.float32]]]:
        start = 0
        while start < len(rows):
            size = self._next_size(len(rows) - start)
            part = rows[start : start + size] if size != _ANY else rows
            request = self._requests[size]
            missing = max(0, size - len(part))
            padded = np.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)]) if missing else part
            request.infer([padded], share_inputs=True)
            outputs = [request.get_output_tensor(number).data for number in self._outputs]
            # The next run overwrites the tensors.
            yield [output[: len(part)].copy() for output in outputs]
            start += len(part)

    def _next_size(self, rows: int) -> int:
        """Return the compiled size for the next part of `rows` remaining rows."""
        smaller = [size for size in self._requests if size <= rows]
        larger = [size for size in self._requests if size >= rows]
        return min(larger) if self._pad and larger else max(smaller)


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
            rounded = openvino.opset13.convert(_in_bf16(node.get_data()), "f32")
            rounded.get_rt_info()["decompression_0"] = ""  # otherwise the conversion is done when it is compiled
            for reader in readers:
                reader.replace_source_output(rounded.output(0))


def _in_bf16(values: NDArray[np.float32]) -> Any:
    """Return a constant with `values`, finite, rounded to the nearest bf16 (ties to even)."""
    openvino = import_openvino()
    tensor = openvino.Tensor(openvino.Type.bf16, openvino.Shape(values.shape))
    bits = tensor.data.view(np.uint16)  # NumPy has no bf16
    for row, floats in zip(bits, values.view(np.uint32), strict=True):
        row[:] = (floats + 0x7FFF + ((floats >> 16) & 1)) >> 16
    return openvino.op.Constant(tensor)


def agrees_in_bf16(artifact: Artifact) -> bool:
    """Return whether bf16 was measured to give the answers of f32: the metrics `bf16` are within the limits."""
    measured = artifact.manifest.metrics.get("bf16") or {}
    return bool(
        measured.get("top1_agreement", 0) >= _MIN_AGREEMENT
        and measured.get("fc7_cosine", 0) >= _MIN_COSINE
        and measured.get("fc7_distance", 1) <= _MAX_DISTANCE
    )


def is_available() -> bool:
    """Return whether this is an x86 CPU and OpenVINO is installed."""
    return platform.machine().lower() in ("x86_64", "amd64") and find_spec("openvino") is not None


def import_openvino() -> Any:
    """Return the module `openvino` without its converter. Raises MissingExtraError."""
    # Importing the converter sends an event to Google Analytics, and takes 0.2 s.
    blocked: dict[str, Any] = sys.modules
    blocked.setdefault("openvino.tools.ovc", None)
    try:
        import openvino  # noqa: PLC0415 - an optional dependency
    except ImportError as exc:
        raise MissingExtraError("openvino", "cpu") from exc
    return openvino


def _core() -> Any:
    core = import_openvino().Core()
    # With memory mapping, editing a file would change results, and cutting it would end the process with SIGBUS.
    core.set_property({"ENABLE_MMAP": False})
    return core


def has_native_bf16() -> bool:
    """Return whether the CPU computes bf16 natively. Raises MissingExtraError."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _ports(ports: Sequence[Any]) -> Ports:
    return {
        port.any_name: (
            port.element_type.get_type_name(),
            [size.get_length() if size.is_static else -1 for size in list(port.partial_shape)[1:]],
        )
        for port in ports
    }
