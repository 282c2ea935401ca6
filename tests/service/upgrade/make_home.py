"""Make the home of a release, as a small archive: run it with the code of that release.

git worktree add /tmp/release COMMIT && cd /tmp/release
PYTHONPATH=. python CHECKOUT/tests/service/upgrade/make_home.py CHECKOUT/tests/service/upgrade/home-COMMIT.tar.xz

Guarantees: the home was written by the release's own code: two versions, an index of four images with metadata over
HTTP, and a finished job.
Out of scope: classifying correctly. The weights have few different values, so that the archive has a few kilobytes.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from model_store.store import ModelStore
from tests.support.pictures import encoded, scene
from tests.support.server import thread_server, wait_until
from tests.support.tiny_model import CLASSES, tiny_draft, write_tiny_graph


def simplify_weights(folder: Path) -> None:
    """Replace the random weights of the graph in `folder` by ones that can be compressed."""
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if tensor.name == "fc7_weight":  # each unit is one input, or its negative
            weights = np.zeros_like(weights)
            units = np.arange(weights.shape[1])
            weights[units % len(weights), units] = np.where(units // len(weights) % 2, -1, 1) / 64
        elif tensor.name == "fc8_weight":
            weights = np.sign(weights) / 64
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), tensor.name))
    (folder / "weights.bin").unlink()
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=16)


def publish(home: Path, seed: int) -> None:
    """Publish a version, and activate it."""
    store = ModelStore(home)
    with store.staging("tiny") as folder:
        write_tiny_graph(folder, len(CLASSES), seed)
        simplify_weights(folder)
        artifact = store.publish(folder, tiny_draft())
    store.activate(artifact.name, artifact.version)


def fill(home: Path) -> None:
    """Index four images, the last one by a job."""
    pictures = [encoded(scene(seed, 64, 64), "PNG") for seed in range(4)]
    with thread_server(home) as server:
        for seed, picture in enumerate(pictures[:3]):
            files = {"file": picture, "metadata": f'{{"label": "kind {seed % 2}", "number": {seed}}}'.encode()}
            server.client.put(f"/v1/images/picture-{seed}", files=files).raise_for_status()
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as members:
            members.writestr("folder/picture-3.png", pictures[3])
        headers = {"Content-Type": "application/zip"}
        job = server.client.post("/v1/jobs", content=archive.getvalue(), headers=headers).raise_for_status().json()
        wait_until(lambda: server.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done")


def main(target: Path) -> None:
    """Make the archive."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        publish(home, 1)
        publish(home, 2)
        fill(home)
        with tarfile.open(target, "w:xz", preset=9) as archive:
            archive.add(home, "home")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
