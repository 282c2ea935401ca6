"""The Explainer: pixels in; probabilities, fc7 and a heat map out, in one pass.

The heat map shows which cells of conv5 raise the logit of a class (Grad-CAM), or bring fc7 nearer to another vector.

Guarantees: always float32, whatever the version is served in: a rounded activation can change a ReLU. On CUDA if a CUDA
device was asked for and works. Every failure of the engine is raised as a `RunnerError`. Thread-safe.
Out of scope: making the graph (training/export/explain_graph.py); drawing the map.
References: Selvaraju et al. 2017, "Grad-CAM".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import RunnerError, ShapeError
from model_store.image import CROP
from model_store.manifest import FEATURES, graph_files
from model_store.runtime.errors import NotExplainableError
from model_store.runtime.onnxruntime_engine import CPU, open_session
from model_store.runtime.options import RunnerOptions

EXPLAIN_FILE: Final = "explain.onnx"
"""The graph for explanations. It is in the folder of `weights.bin`, because external data of other folders is not
portable: ONNX Runtime and OpenVINO reject or rewrite paths with `..`."""

EXPLAIN_FILES: Final = (EXPLAIN_FILE, *graph_files("fp32")[1:])
_OUTPUTS: Final = ("probabilities", "fc7", "heat", "explained")
# Packed weights would be two copies of fc7's matrix, which is used in both directions: 286 MB instead of 222 MB for the
# paper's net. One image takes the same time without.
_CPU_CONFIG: Final = {"session.disable_prepacking": "1"}


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What is explained: a class by its index, by default the most probable one; or the nearness to `near`.

    near: an fc7 vector, float32 [4096]. The output is then the negative Euclidean distance between fc7 and `near`.
    """

    index: int | None = None
    near: NDArray[np.float32] | None = None


class Explanations(NamedTuple):
    """Outputs for n inputs: probabilities float32 [n,K], fc7 float32 [n,4096], heat and explained class int64 [n].

    heat: float32 [n, height, width], at least 0; 13x13 for the paper's net. It is not scaled.
    """

    probabilities: NDArray[np.float32]
    fc7: NDArray[np.float32]
    heat: NDArray[np.float32]
    explained: NDArray[np.int64]


def require_explainable(artifact: Artifact) -> None:
    """Raise NotExplainableError if the version has no graph for explanations."""
    if EXPLAIN_FILE not in artifact.manifest.files:
        raise NotExplainableError(artifact.id)


class Explainer:
    """The graph for explanations of a version, loaded in ONNX Runtime. It has its own copy of the fp32 weights."""

    def __init__(self, artifact: Artifact, options: RunnerOptions | None = None) -> None:
        """Load the graph. The files are compared with the manifest.

        options: device, threads and memory limit are used. Raises NotExplainableError, ArtifactCorruptError,
        DeviceUnavailableError, RunnerError and MissingExtraError.
        """
        require_explainable(artifact)
        options = replace(options or RunnerOptions(), cuda_graphs=False, tensorrt=None, bind=None)
        self.artifact, self._classes = artifact, len(artifact.manifest.classes)
        session, provider = open_session(artifact, EXPLAIN_FILES, options, _CPU_CONFIG)
        self._session = session
        device = "cpu" if provider == CPU else "cuda"
        if missing := set(_OUTPUTS) - {output.name for output in session.get_outputs()}:
            raise RunnerError(artifact.id, f"{EXPLAIN_FILE} has no output {min(missing)}")
        structlog.get_logger(__name__).info("explanations loaded", model=artifact.id, device=device)

    def run(self, pixels: NDArray[np.uint8], targets: Sequence[Target]) -> Explanations:
        """Explain pixels, uint8 [n,224,224,3], RGB, n >= 1; one target for each.

        Raises ShapeError for other arrays, IndexError for a class that does not exist, RunnerError.
        """
        if pixels.dtype != np.uint8 or pixels.shape != (len(targets), CROP, CROP, 3) or not targets:
            raise ShapeError(
                "pixels", f"uint8 [{len(targets)},{CROP},{CROP},3]", f"{pixels.dtype} {list(pixels.shape)}"
            )
        for target in targets:
            if target.index is not None and not 0 <= target.index < self._classes:
                raise IndexError(f"There is no class {target.index}: the model has {self._classes}.")
        near = np.zeros((len(targets), FEATURES), np.float32)
        for row, target in zip(near, targets, strict=True):
            if target.near is not None:
                row[:] = target.near
        inputs = {
            "pixels": np.ascontiguousarray(pixels),
            "class": np.array([-1 if target.index is None else target.index for target in targets], np.int64),
            "near": near,
            "by_distance": np.array([[target.near is not None] for target in targets]),
        }
        try:
            return Explanations(*self._session.run(_OUTPUTS, inputs))
        except Exception as exc:  # ONNX Runtime has many exception classes
            raise RunnerError(self.artifact.id, str(exc)) from exc
