"""A LitServe application with the same graph, preprocessing, batches and responses as fc7.

    python -m benchmarks.serving.litserve_app HOME PORT THREADS [--engine NAME] [--graph FILE]

It runs the version in the engine NAME (onnxruntime or openvino); with FILE it runs that graph in a default session.
The engine (`Runner`), `prepare`, `views` and `top_k` are those of fc7. HTTP, queues, processes and batching (16
images, 10 ms) are those of LitServe, with the options that its documentation recommends for throughput
(`fast_queue`). Images are multipart uploads. With one thread, images are decoded one by one in `decode_request`, as in
LitServe's documentation; with more, a thread pool decodes them in `batch`, which is half of what fc7 does.
"""

import argparse  # without `from __future__ import annotations`: LitServe compares annotations with classes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Request
from numpy.typing import NDArray

from model_store.image import CROP, prepare, views
from model_store.runtime.options import EngineName, RunnerOptions
from model_store.runtime.runner import Outputs, Runner, top_k
from model_store.store import ModelStore

BATCH = 16
WAIT_S = 0.01
# With the package mcp but without fastmcp, LitServe 0.2.19 fails with a NameError when it starts.
litserve.server._MCP_AVAILABLE = False


class Classify(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Classify an image: return the five most probable classes."""

    def __init__(self, home: Path, threads: int, *, engine: EngineName, graph: Path | None) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_S)
        self.home, self.threads, self.engine, self.graph = home, threads, engine, graph

    def setup(self, device: str) -> None:
        """Load the active version in the worker process."""
        del device
        artifact = ModelStore(self.home).active_artifact()
        self.labels = artifact.labels
        if self.graph is None:
            runner = Runner(artifact, RunnerOptions(device="cpu", engine=self.engine))
            self.run: Callable[[Any], Outputs] = runner.run
        else:
            session = onnxruntime.InferenceSession(self.graph, providers=["CPUExecutionProvider"])
            self.run = lambda pixels: Outputs(*session.run(["probabilities", "fc7"], {"pixels": pixels}))
        for size in (1, BATCH):
            self.run(np.zeros((size, CROP, CROP, 3), np.uint8))
        self.pool = ThreadPoolExecutor(self.threads)

    def decode_request(self, request: Request) -> bytes | NDArray[np.uint8]:
        """Read the upload, and decode it unless the pool does."""
        data = request["file"].file.read()
        return data if self.threads > 1 else prepare(data)

    def batch(self, inputs: list[Any]) -> NDArray[np.uint8]:
        """Combine the images into a batch."""
        pixels = list(self.pool.map(prepare, inputs)) if self.threads > 1 else inputs
        return views(np.stack(pixels))

    def predict(self, x: NDArray[np.uint8]) -> Outputs:
        """Run the graph."""
        return self.run(x)

    def unbatch(self, output: Outputs) -> list[NDArray[np.float32]]:
        """Split the batch into the probabilities of each image."""
        return list(output.probabilities)

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Return the five most probable classes."""
        indices, values = top_k(output[None], min(5, len(self.labels)))
        return {
            "predictions": [
                {"label": self.labels[index], "probability": float(value)}
                for index, value in zip(indices[0], values[0], strict=True)
            ]
        }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("--engine", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--graph", type=Path)
    given = parser.parse_args()
    served = Classify(given.home, given.threads, engine=given.engine, graph=given.graph)
    server = litserve.LitServer(served, accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=given.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    _main()
