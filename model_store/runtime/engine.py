"""The interface of an inference engine. Each engine has a file of its own; `runner` chooses one.

Out of scope: checking pixels and translating errors (see `runner`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Name -> (element type, shape without the batch axis) of the inputs or outputs of a graph.
Ports = Mapping[str, tuple[str, Sequence[int]]]


class Engine(Protocol):
    """A loaded graph. `run` may be called from several threads.

    name: "onnxruntime" or "openvino". device: "cpu" or "cuda:N". provider: ONNX Runtime's execution provider, or
    "OpenVINO". arithmetic: of the layers, "f32", "bf16", "int8" or "fp16". inputs, outputs: of the graph. streams: how
    many runs can take place at the same time, each on an equal part of the threads.
    """

    name: str
    device: str
    provider: str
    arithmetic: str
    streams: int
    inputs: Ports
    outputs: Ports

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Sequence[NDArray[np.float32]]:
        """Return probabilities and fc7, as new arrays, of uint8 [n,224,224,3], C-contiguous.

        all_cores: use the threads of all streams. Otherwise, use one stream.
        """
