"""Run a version of a model with ONNX Runtime: pixels in, probabilities and fc7 out, in one pass.

Promises: what is loaded is what the manifest describes, and lives in memory alone: editing or removing the files later
changes nothing; the graph has the served contract before the first request; a CUDA device that
was asked for is used or refused, never silently replaced; every failure of ONNX Runtime is a `RunnerError`.
Does not: decode images, batch, average views, retry. Calls from several threads are safe.
Source: ONNX Runtime's documentation of the CUDA execution provider and of session options.
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
    """What the network says of n inputs: probabilities float32 [n,K], and fc7 float32 [n,4096] after ReLU."""

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]


class Runner:
    """A loaded version on one device. `device` is "cpu" or "cuda:N", `provider` ONNX Runtime's name for it.

    `streams`: how many calls of `run_beside` make best use of the device at a time.
    """

    def __init__(self, artifact: Artifact, options: RunnerOptions | None = None) -> None:
        """Load `artifact`. Files that were not verified yet are compared with the manifest, each read once.

        Raises ArtifactCorruptError, PrecisionNotFoundError, DeviceUnavailableError when CUDA was asked for and cannot
        be used, RunnerError for a graph that cannot be loaded or has another contract, MissingExtraError without ONNX
        Runtime.
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
