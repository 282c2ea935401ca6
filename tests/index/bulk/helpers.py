"""Images and indexes for the tests of bulk operations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.runtime.runner import Runner


def save_image(path: Path, seed: int) -> None:
    """Write an image of colored squares; two seeds give very different images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(squares).resize((320, 240), Image.Resampling.NEAREST).save(path)


def open_index(home: Path, runner: Runner, *, switch: bool = False) -> LocalImageIndex:
    """Open the index of `home` for the model of `runner`."""
    artifact = runner.artifact
    return LocalImageIndex.open(home, IndexOptions(artifact.fingerprint, artifact.id, switch=switch))
