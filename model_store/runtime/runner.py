"""The Runner: pixels in, probabilities and fc7 out, in one pass.

Guarantees: the loaded graph has the expected inputs and outputs. Every failure of the engine is raised as a
`RunnerError`. Thread-safe.
Out of scope: decoding, batching, averaging views, retries.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.artifact import FEATURES, Artifact
from model_store.errors import RunnerError, ShapeError
from model_store.image import CROP
from model_store.runtime.options import RunnerOptions
from model_store.runtime.ort import CPU, bind_io, load_sessions

if TYPE_CHECKING:
    import onnxruntime


class Outputs(NamedTuple):
    """Outputs for n inputs: probabilities float32 [n,K], and fc7 float32 [n,4096] after ReLU."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]


class Runner:
    """A loaded version on one device.

    device: "cpu" or "cuda:N". provider: ONNX Runtime's execution provider. streams: the best number of concurrent calls
    of `run_in_stream`.
    """

    def __init__(self, artifact: Artifact, options: RunnerOptions | None = None) -> None:
        """Load `artifact`. Files that were not verified yet are compared with the manifest, each read once.

        Raises ArtifactCorruptError, PrecisionNotFoundError, DeviceUnavailableError (CUDA was requested and is not
        available), RunnerError (the graph cannot be loaded, or has other inputs or outputs), MissingExtraError (ONNX
        Runtime is not installed).
        """
        self.options = options or RunnerOptions()
        if self.options.precision is not None:
            artifact = artifact.at(self.options.precision)
        self.artifact = artifact
        self.classes = len(artifact.manifest.classes)
        self._session: onnxruntime.InferenceSession | None
        (self._session, *shared), self.provider = load_sessions(artifact, self.options)
        artifact.verify()  # the files that were not loaded; `load_sessions` verified the others as it read them
        self._shared: onnxruntime.InferenceSession | None = shared[0] if shared else None
        self.streams = self.options.streams if shared else 1
        self.device = "cpu" if self.provider == CPU else f"cuda:{self.options.cuda_device}"
        for session in (self._session, *shared):
            self._check_contract(session)
        self._bound = bind_io(self._session, self.provider, self.options)
        self._running = threading.Lock()  # protects the shared buffers of IO binding
        structlog.get_logger(__name__).info(
            "model loaded",
            model=artifact.embedder,
            device=self.device,
            requested=self.options.device,
            provider=self.provider,
            streams=self.streams,
        )

    def _check_contract(self, session: onnxruntime.InferenceSession) -> None:
        inputs = {node.name: (node.type, node.shape[1:]) for node in session.get_inputs()}
        outputs = {node.name: (node.type, node.shape[1:]) for node in session.get_outputs()}
        wanted_inputs = {"pixels": ("tensor(uint8)", [CROP, CROP, 3])}
        wanted_outputs = {"probabilities": ("tensor(float)", [self.classes]), "fc7": ("tensor(float)", [FEATURES])}
        if inputs != wanted_inputs:
            raise RunnerError(self.artifact.id, f"the inputs of the graph are {inputs}, but must be {wanted_inputs}")
        for name, wanted in wanted_outputs.items():
            if outputs.get(name) != wanted:
                raise RunnerError(
                    self.artifact.id, f"the output {name} of the graph is {outputs.get(name)}, but must be {wanted}"
                )

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Run the network on pixels, uint8 [n,224,224,3], RGB, n >= 1. Returns one row for each image.

        Raises ShapeError for other arrays, RunnerError if the engine fails or the runner is closed.
        """
        return self._run(pixels, self._session)

    def run_in_stream(self, pixels: NDArray[np.uint8]) -> Outputs:
        """As `run`, but with one stream's share of the threads, for up to `streams` concurrent calls.

        Concurrent runs give more images a second: the threads of one run wait for each other after every operator, the
        threads of different runs do not. Uses the graph for batches if the version has one, so the outputs can differ
        from those of `run` by rounding.
        """
        return self._run(pixels, self._shared or self._session)

    def _run(self, pixels: NDArray[np.uint8], session: onnxruntime.InferenceSession | None) -> Outputs:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (CROP, CROP, 3) or not len(pixels):
            raise ShapeError("pixels", f"uint8 [n,{CROP},{CROP},3], n >= 1", f"{pixels.dtype} {list(pixels.shape)}")
        if session is None:
            raise RunnerError(self.artifact.id, "the runner is closed")
        pixels = np.ascontiguousarray(pixels)
        bound = self._bound if session is self._session else None
        try:
            if bound is None:
                return Outputs(*session.run(["probabilities", "fc7"], {"pixels": pixels}))
            with self._running:
                return Outputs(*bound.run(pixels))
        except Exception as exc:  # ONNX Runtime has an exception class for each status code
            raise RunnerError(self.artifact.id, str(exc)) from exc

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Run each batch size once, so that memory is allocated and algorithms are chosen before the first request.

        Batches of several images run on all streams.
        """
        for size in batch_sizes:
            pixels = np.zeros((size, CROP, CROP, 3), np.uint8)
            if size == 1 or self._shared is None:
                self.run(pixels)
            else:
                with ThreadPoolExecutor(self.streams) as pool:
                    list(pool.map(self.run_in_stream, [pixels] * self.streams))

    def close(self) -> None:
        """Free the sessions. Runs in progress finish; a later `run` raises RunnerError."""
        self._session = self._shared = self._bound = None


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
