"""The Runner: pixels in, probabilities and fc7 out, in one pass.

Guarantees: the loaded graph has the expected inputs and outputs. Every failure of the engine is raised as a
`RunnerError`. Thread-safe.
Out of scope: decoding, batching, averaging views, retries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.artifact import ONNXRUNTIME, OPENVINO, Artifact
from model_store.errors import RunnerError, ShapeError
from model_store.image import CROP
from model_store.manifest import FEATURES
from model_store.runtime.engine import Engine
from model_store.runtime.onnxruntime_engine import OnnxRuntimeEngine, has_cuda
from model_store.runtime.openvino_engine import OpenVinoEngine, is_available
from model_store.runtime.options import RunnerOptions


class Outputs(NamedTuple):
    """Outputs for n inputs: probabilities float32 [n,K], and fc7 float32 [n,4096] after ReLU."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]


class Runner:
    """A loaded version on one device.

    engine: "onnxruntime" or "openvino". device: "cpu" or "cuda:N". provider: ONNX Runtime's execution provider, or
    "OpenVINO". arithmetic: "f32", "bf16", "int8" or "fp16". streams: how many runs can take place at the same time,
    each on an equal part of the threads.
    """

    def __init__(self, artifact: Artifact, options: RunnerOptions | None = None) -> None:
        """Load `artifact`. Files that were not verified yet are compared with the manifest.

        Raises ArtifactCorruptError, PrecisionNotFoundError, DeviceUnavailableError (CUDA was requested and is not
        available), RunnerError (the graph cannot be loaded, or has other inputs or outputs), MissingExtraError (the
        engine is not installed).
        """
        self.options = options or RunnerOptions()
        if self.options.precision is not None:
            artifact = artifact.at(self.options.precision)
        self.classes = len(artifact.manifest.classes)
        engine = open_engine(artifact, self.options)
        artifact.verify()  # the files that the engine did not load
        self.artifact = artifact.at(artifact.precision, engine.name)
        self._engine: Engine | None = engine
        self.engine, self.device, self.provider = engine.name, engine.device, engine.provider
        self.arithmetic, self.streams = engine.arithmetic, engine.streams
        self._check_contract(engine)
        structlog.get_logger(__name__).info(
            "model loaded",
            model=self.artifact.embedder,
            device=self.device,
            requested=self.options.device,
            engine=self.engine,
            provider=self.provider,
            arithmetic=self.arithmetic,
            streams=self.streams,
        )

    def _check_contract(self, engine: Engine) -> None:
        wanted_inputs = {"pixels": ("u8", [CROP, CROP, 3])}
        wanted_outputs = {"probabilities": ("f32", [self.classes]), "fc7": ("f32", [FEATURES])}
        if engine.inputs != wanted_inputs:
            raise RunnerError(
                self.artifact.id, f"the inputs of the graph are {engine.inputs}, but must be {wanted_inputs}"
            )
        for name, wanted in wanted_outputs.items():
            if engine.outputs.get(name) != wanted:
                found = engine.outputs.get(name)
                raise RunnerError(self.artifact.id, f"the output {name} of the graph is {found}, but must be {wanted}")

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Outputs:
        """Run the network on pixels, uint8 [n,224,224,3], RGB, n >= 1. Returns one row for each image.

        all_cores: use all threads. Otherwise, use one stream, because the other cores have other work.
        Raises ShapeError for other arrays, RunnerError if the engine fails or the runner is closed.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (CROP, CROP, 3) or not len(pixels):
            raise ShapeError("pixels", f"uint8 [n,{CROP},{CROP},3], n >= 1", f"{pixels.dtype} {list(pixels.shape)}")
        engine = self._engine
        if engine is None:
            raise RunnerError(self.artifact.id, "the runner is closed")
        try:
            return Outputs(*engine.run(np.ascontiguousarray(pixels), all_cores=all_cores))
        except Exception as exc:  # each engine has exception classes of its own
            raise RunnerError(self.artifact.id, str(exc)) from exc

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Run each batch size once, so that memory is allocated and algorithms are chosen before the first request."""
        for size in batch_sizes:
            self.run(np.zeros((size, CROP, CROP, 3), np.uint8))

    def close(self) -> None:
        """Free the engine's memory. Runs in progress finish; a later `run` raises RunnerError."""
        self._engine = None


def engine_of(options: RunnerOptions) -> Literal["onnxruntime", "openvino"]:
    """Return the engine that runs a version with these options, "onnxruntime" or "openvino"; nothing is loaded.

    In int8 it is always this one, because the vectors depend on it. In other precisions, OpenVINO replaces ONNX
    Runtime if there turns out to be no CUDA device.
    """
    if options.engine != "auto":
        return options.engine
    cpu_only = options.device == "cpu" or (options.device == "auto" and not options.cuda_only and not has_cuda())
    return OPENVINO if cpu_only and _may_use_openvino(options) else ONNXRUNTIME


def open_engine(artifact: Artifact, options: RunnerOptions) -> Engine:
    """Load `artifact` in the engine that the options give. Raises as `Runner`."""
    if engine_of(options) == OPENVINO:
        return OpenVinoEngine(artifact, options)
    engine = OnnxRuntimeEngine(artifact, options)
    replace = engine.device == "cpu" and not artifact.depends_on_engine and _may_use_openvino(options)
    return OpenVinoEngine(artifact, options) if replace else engine


def _may_use_openvino(options: RunnerOptions) -> bool:
    return options.engine == "auto" and options.bind is None and is_available()


def average_views(values: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Return the mean over the n views of each picture: float32 [b*n, ...] -> [b, ...], in the order of `image.views`.

    Raises ShapeError unless the number of rows is a multiple of n. References: the paper, section 4.1.
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
    ValueError unless 1 <= k <= K. References: the paper, section 2 (top-5).
    """
    if probabilities.ndim != 2:
        raise ShapeError("probabilities", "float32 [n,K]", f"{probabilities.dtype} {list(probabilities.shape)}")
    if not 1 <= k <= probabilities.shape[1]:
        raise ValueError(f"k must be from 1 to {probabilities.shape[1]}, the number of classes, but is {k}.")
    # A stable sort: improbable classes underflow to 0 and tie, and all replicas must return them in the same order.
    indices = np.argsort(-probabilities, axis=1, kind="stable")[:, :k].astype(np.int64, copy=False)
    return indices, probabilities[np.arange(len(indices))[:, np.newaxis], indices]
