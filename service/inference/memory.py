"""An estimate of the memory that a model needs.

Out of scope: reserving memory.
"""

from __future__ import annotations

from typing import Final

from model_store.artifact import Artifact
from model_store.manifest import graph_files
from model_store.runtime.explainer import EXPLAIN_FILES

# Measured with the paper's net (232 MiB of weights), in MiB: OpenVINO at most 635 and then 580 in f32, 510 and then 440
# in bf16; ONNX Runtime 605 and then 260.
LOADING_FACTOR: Final = 2.75
_MARGIN: Final = 32 * 1024 * 1024


def needed_to_load(artifact: Artifact) -> int:
    """Return the peak number of bytes that loading this version takes."""
    files = artifact.manifest.files
    return int(LOADING_FACTOR * sum(files[name].size for name in graph_files(artifact.precision))) + _MARGIN


def needed_to_explain(artifact: Artifact) -> int:
    """Return the peak number of bytes that loading the graph for explanations takes: the files, and a copy of them."""
    files = artifact.manifest.files
    return 2 * sum(files[name].size for name in EXPLAIN_FILES) + _MARGIN
