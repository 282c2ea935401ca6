"""Class folders of small images for training tests. Each class has its own color, and all images differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model_store.training.recipe import Recipe

CHANNELS = {"blue": 2, "green": 1, "red": 0}

# A narrow net that learns these images in a few steps, with the same bits on every machine.
TRIAL_RECIPE = Recipe(
    name="trial",
    width=1 / 64,
    input_scale=1 / 64,
    dropout="inverted",
    initialisation="he",
    epochs=2,
    batch_size=9,
    learning_rate=0.02,
    update="torch",
    schedule="one-cycle",
    precision="float32",
)


def write_class_folders(root: Path, train: int = 6, val: int = 2, seed: int = 0) -> Path:
    """Write `root`/{train,val}/{blue,green,red}/<n>.png, and return `root`."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for name, channel in CHANNELS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 150, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root
